"""The command line: `funreason fit|validate|test|predict --config FILE [--config OVERLAY] [--model.x y]`.

`funreason export --ckpt_path PATH` writes the Hugging Face folder of a checkpoint (`lightning_modules.export`), and
`funreason data --path ANY --out FILE` the rows that are read of a source (`lightning_modules.commands.data`).
"""

import operator
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import torch.distributed as dist
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import datamodules  # noqa: F401  (YAML may then use bare class names)
from datamodules.command_line import SentenceParser, refuse, sentence
from datamodules.files import clear_unfinished
from datamodules.redaction import keep_secrets_of, redact_settings, refuse_masked
from lightning_modules import export
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks import ExportHF, MetricsCSV, RolloutWriter, SampleTable
from lightning_modules.checkpoints import EitherKind
from lightning_modules.commands import data
from lightning_modules.resume import ExactResume, LastCheckpoint, resolve_checkpoint
from lightning_modules.rollout.table import RolloutTable
from lightning_modules.sharded_checkpoints import MovingCheckpoints
from lightning_modules.summary import RunSummary

HERE = Path(__file__).resolve().parents[1]
REFUSERS = (HERE / "lightning_modules", HERE / "datamodules", HERE / "rewards", Path(jsonargparse.__file__).parent)
"""Code whose errors are sentences for the user."""
BESIDE_THE_POINT = (
    "LightningCLI's args parameter is intended to run from within Python",  # so is main(args)
    "`ModelCheckpoint.monitor=.* could not find the monitored key",  # the run ends before its first validation
    "The dirpath has changed from",  # a resumed run writes its own version folder
    "Using ModelCheckpoint with manual optimization",  # the weights after the optimizer step are the ones to save
    "It is recommended to use `self.log.*sync_dist=True",  # figures are reduced before they are logged
    "`isinstance.treespec, LeafSpec.` is deprecated|torch.distributed.nn.functional.all_gather is",  # Lightning's own
    "Found .* module.s. in eval mode at the start of training",  # the frozen reference
    "Total length of `list` across ranks is zero",  # there is nothing to validate on
    "The '.*dataloader' does not have many workers",  # batches are cut from an Arrow file in memory
)
"""Starts of warnings that a user can do nothing about."""


class Parser(SentenceParser, LightningArgumentParser):
    """Lightning's parser, whose errors are one sentence."""


class SaveRedactedConfig(SaveConfigCallback):
    """Saves the settings to `config.yaml`, but for what is secret."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        super().__init__(parser, redact_settings(config), **options)


class RunTrainer(Trainer):
    """Lightning's trainer, whose `log_dir` is the run's version folder, whatever its loggers make of theirs."""

    place: TensorBoardLogger | None = None  # knows the folder; of loggers it is one only where no other is set

    @property
    def log_dir(self) -> str | None:
        """The run's folder; a collective, so that every rank has to ask."""
        if self.place is None or self.fast_dev_run:
            return super().log_dir
        return self.strategy.broadcast(self.place.log_dir)


class FunReasonCLI(LightningCLI):
    """One model, one DataModule, one logger; checkpoints `last` (every so many steps) and `best` (by validation).

    Args:
        args: Command line; `sys.argv` when None.
        run: Whether to run a subcommand; False only builds model, data and trainer, as a notebook wants them.
    """

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        for message in BESIDE_THE_POINT:
            warnings.filterwarnings("ignore", message=message)
        super().__init__(
            FunctionCallingModule,
            LightningDataModule,
            save_config_callback=SaveRedactedConfig,
            trainer_class=RunTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults={
                "default_root_dir": "runs",
                "log_every_n_steps": 1,
                "use_distributed_sampler": False,  # the DataModules deal rows to ranks themselves
                "enable_model_summary": False,  # RunSummary says it
                "callbacks": [ExactResume(), RunSummary(), MetricsCSV(), RolloutWriter(), ExportHF()],
            },
            seed_everything_default=42,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that a YAML may set but no overlay can drop, and give the data the model's tokenizer."""
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(SampleTable, "samples")
        parser.add_lightning_class_args(RolloutTable, "rollouts")
        best = {"filename": "best-{step:06d}", "auto_insert_metric_name": False, "enable_version_counter": False}
        best |= {"monitor": "tool/exact_match", "mode": "max"}
        parser.set_defaults({f"best_checkpoint.{key}": value for key, value in best.items()})
        parser.link_arguments("model.init_args.init_from", "data.init_args.tokenizer")
        steps = ("model.init_args.inner_epochs", "model.init_args.mini_batches")
        parser.link_arguments(steps, "data.init_args.repeats", compute_fn=operator.mul)

    def before_instantiate_classes(self) -> None:
        """Find folder and checkpoint before anything loads; predictions go to disk, and we print the figures."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        refuse_masked(config)
        keep_secrets_of(config)
        settle(config["trainer"])
        if config.get("ckpt_path"):
            config["ckpt_path"] = resolve_checkpoint(config["ckpt_path"])
        if self.subcommand == "predict":
            config["return_predictions"] = False
        elif self.subcommand in ("validate", "test"):
            config["verbose"] = False

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Give the run a new version folder under `trainer.default_root_dir`; `trainer.logger` may log elsewhere."""
        config = self._get(self.config_init, "trainer")
        place = TensorBoardLogger(config["default_root_dir"], name="", default_hp_metric=False)
        ours = config["logger"] in (None, True)
        if ours:
            kwargs["logger"] = place
        trainer = super().instantiate_trainer(**kwargs)
        if self._get(self.config_init, "ckpt_path"):
            check_reads_safely(trainer.strategy)
        tables = [os.path.abspath(logger.log_dir) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        runs = self.subcommand is not None and not trainer.fast_dev_run and trainer.is_global_zero
        place = version_folder(place, tables, claim=runs)
        if ours and not trainer.fast_dev_run:
            trainer.loggers = [place]
        elif not ours:
            for callback in trainer.checkpoint_callbacks:
                callback.dirpath = callback.dirpath or os.path.join(place.log_dir, "checkpoints")
        trainer.place = place
        trainer.strategy.checkpoint_io = EitherKind(self._get(self.config_init, "last_checkpoint").fsync)
        return trainer

    def before_fit(self) -> None:
        """A rank that fails alone must not wait for the others to save with it."""
        if self.trainer.world_size > 1:
            for callback in self.trainer.checkpoint_callbacks:
                callback.save_on_exception = False


def version_folder(place: TensorBoardLogger, tables: list[str], claim: bool) -> TensorBoardLogger:
    """Find the folder of a run: of the versions from `place` on the first that is nobody's.

    Args:
        place: A logger with the root and the first version to try.
        tables: Absolute paths of folders that hold a `metrics.csv` of the run's other loggers.
        claim: Whether to make it, so that of runs that start at once each has its own, and to clear from the earlier
            ones what a kill has left half-written.

    Returns:
        A logger with the version found.
    """
    if claim:
        os.makedirs(place.root_dir, exist_ok=True)
        for run in Path(place.root_dir).glob("version_*"):
            clear_unfinished(run)
            clear_unfinished(run / "checkpoints")
    while os.path.abspath(place.log_dir) in tables or (claim and not made(place.log_dir)):
        place = TensorBoardLogger(place.save_dir, name="", version=place.version + 1, default_hp_metric=False)
    return place


def made(folder: str) -> bool:
    """Make a folder; False if somebody else has."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        return False
    return True


def check_reads_safely(strategy: Strategy) -> None:
    """Refuse to go on from a checkpoint with a strategy that reads it in a way of its own.

    Raises:
        ValueError: Lightning's FSDP and DeepSpeed would run code that a checkpoint holds.
    """
    if type(strategy).load_checkpoint not in (Strategy.load_checkpoint, MovingCheckpoints.load_checkpoint):
        raise ValueError(
            f"trainer.strategy: {type(strategy).__name__} would run code that is hidden in --ckpt_path; take FSDP2 or "
            "FSDP1 of lightning_modules.strategies, ddp or auto, which all read checkpoints of one another"
        )


def settle(trainer: Namespace) -> None:
    """Make the root a folder of this machine, and answer settings of Lightning that this project has others for.

    Raises:
        ValueError: The root is on another machine, or there is such a setting.
    """
    root = os.fspath(trainer["default_root_dir"] or ".")
    if "://" in root:
        raise ValueError(
            f"trainer.default_root_dir: {root} is no folder of this machine: give a local or a mounted one, "
            "and copy the run folder when it is done"
        )
    trainer["default_root_dir"] = os.path.expanduser(root)
    if trainer["gradient_clip_val"] is not None or trainer["gradient_clip_algorithm"] is not None:
        raise ValueError("trainer.gradient_clip_val and gradient_clip_algorithm are not used: set model.max_grad_norm")
    if trainer["accumulate_grad_batches"] != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches: {trainer['accumulate_grad_batches']} is not used: data.batch_size sets "
            "the rows of an optimizer step, data.micro_batch_tokens (with rollouts model.micro_batch_tokens) those of "
            "one pass"
        )


def main(args: ArgsType = None) -> None:
    """Run one command. Bad input ends it with one sentence and exit code 1, SIGTERM with a checkpoint and 143."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words[:1] == ["export"]:
            export.main(words[1:])
        elif words[:1] == ["data"]:
            data.main(words[1:])
        else:
            FunReasonCLI(args)
        if dist.is_available() and dist.is_initialized():  # of NCCL Lightning does it, at exit
            # Gloo's threads let go of a collective's tensors under the interpreter's lock; one that ends first aborts.
            dist.destroy_process_group()
    except SIGTERMException:
        sys.exit(143)
    except MisconfigurationException as error:  # of Lightning, about settings that do not fit this machine
        sys.exit(f"error: trainer: {sentence(str(error))}")
    except (ValueError, OSError, RuntimeError) as error:
        # A sentence for the user needs no traceback above it; an error from anywhere else does.
        source = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not any(folder in source.parents for folder in REFUSERS):
            raise
        refuse(error)
