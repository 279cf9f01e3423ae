"""Silence for messages of other libraries that a user can do nothing about."""

import logging
import warnings

import datasets
from transformers.utils import logging as transformers_logging

BESIDE_THE_POINT = (
    "LightningCLI's args parameter is intended to run from within Python",  # so is main(args)
    "`ModelCheckpoint.monitor=.* could not find the monitored key",  # the run ends before its first validation
    "Using ModelCheckpoint with manual optimization",  # the weights after the optimizer step are the ones to save
    "It is recommended to use `self.log.*sync_dist=True",  # metrics are reduced before they are logged
    "`isinstance.treespec, LeafSpec.` is deprecated|torch.distributed.nn.functional.all_gather is",  # Lightning's own
    "Found .* module.s. in eval mode at the start of training",  # the frozen reference
    "Total length of `list` across ranks is zero",  # there is nothing to validate on
    "The '.*dataloader' does not have many workers",  # batches are cut from an Arrow file in memory
)
"""Starts of warnings that a user can do nothing about."""
CHATTER = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.accelerators.cuda",
)
"""Loggers of Lightning that tell of devices, seeds and other products; the table says what of it matters."""


def be_quiet() -> None:
    """Silence what other libraries say of themselves: advice, devices, bars; their warnings stay."""
    for message in BESIDE_THE_POINT:
        warnings.filterwarnings("ignore", message=message)
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
