"""What each rank of the two-rank test runs: one command, given as arguments."""

import sys

from lightning_modules.cli import main

arguments, sys.argv = sys.argv[1:], sys.argv[:1]
main(arguments)
