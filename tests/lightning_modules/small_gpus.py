"""GPUs of 1 MiB on some ranks, as far as the check of a run's memory knows."""

import os
import time

from lightning_modules.callbacks import fits
from lightning_modules.commands import main
from lightning_modules.evaluation import EvaluationModule


def make_small(ranks):
    """Let these ranks find little memory, none of all load weights, and the second one end a second after the first."""
    fits.gpu_memory = lambda device: 2**20 if os.environ["RANK"] in ranks else 2**50
    EvaluationModule.load_policy = None
    first_to_report, main.PATIENCE = main.first_to_report, 60.0

    def late():
        time.sleep(int(os.environ["RANK"]))
        return first_to_report()

    main.first_to_report = late
