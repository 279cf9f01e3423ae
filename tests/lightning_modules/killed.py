"""Runs one command, given as arguments, in which a rank sends itself a signal at a place in a training step.

python killed.py SIGNAL CLASS.METHOD STEP ARGUMENT...
"""

import os
import signal
import sys

import lightning_modules
from lightning_modules.cli import main


def kill_at(name, place, step):
    """Let the last rank send itself a signal before a method (CLASS.METHOD), once it has taken so many steps."""
    kind, method = place.split(".")
    module_class = getattr(lightning_modules, kind)
    original = getattr(module_class, method)

    def kill(module, *args, **kwargs):
        last = module.global_rank == module.trainer.world_size - 1
        if last and module.global_step == int(step) and not module.trainer.sanity_checking:
            os.kill(os.getpid(), signal.Signals[name])
        return original(module, *args, **kwargs)

    setattr(module_class, method, kill)


if __name__ == "__main__":
    *moment, step = sys.argv[1:4]
    kill_at(*moment, step)
    sys.argv, arguments = sys.argv[:1], sys.argv[4:]
    main(arguments)
