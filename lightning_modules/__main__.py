"""`python -m lightning_modules` is `funreason`."""

from lightning_modules.cli import main

main()
