"""`python -m datamodules.refinement` is `funreason-refine`."""

from datamodules.refinement.cli import main

main()
