"""`python -m lightning_modules` is `funreason`."""

from lightning_modules.commands.main import main

main()
