"""Runs one command, given as arguments, in which a rank sends itself a signal at a place in a training step.

python killed.py SIGNAL METHOD STEP ARGUMENT...: before METHOD of GRPOModule, when STEP optimizer steps are taken. The
rank is the last one.
"""

import os
import signal
import sys

from lightning_modules import GRPOModule
from lightning_modules.cli import main

name, method, step, *arguments = sys.argv[1:]
original = getattr(GRPOModule, method)


def kill(module, *args, **kwargs):
    last = module.global_rank == module.trainer.world_size - 1
    if last and module.global_step == int(step) and not module.trainer.sanity_checking:
        os.kill(os.getpid(), signal.Signals[name])
    return original(module, *args, **kwargs)


setattr(GRPOModule, method, kill)
sys.argv = sys.argv[:1]
main(arguments)
