"""Runs one command, given as arguments, in which a rank sends itself a signal at a place in a training step.

python killed.py SIGNAL CLASS.METHOD STEP ARGUMENT...: before METHOD of a module, when it has taken STEP optimizer
steps. The rank is the last one.
"""

import os
import signal
import sys

import lightning_modules
from lightning_modules.cli import main

name, place, step, *arguments = sys.argv[1:]
kind, method = place.split(".")
module_class = getattr(lightning_modules, kind)
original = getattr(module_class, method)


def kill(module, *args, **kwargs):
    last = module.global_rank == module.trainer.world_size - 1
    if last and module.global_step == int(step) and not module.trainer.sanity_checking:
        os.kill(os.getpid(), signal.Signals[name])
    return original(module, *args, **kwargs)


setattr(module_class, method, kill)
sys.argv = sys.argv[:1]
main(arguments)
