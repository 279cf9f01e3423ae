"""The commands that train or evaluate: `funreason fit|validate|test|predict --config FILE [--config OVERLAY]`.

All commands are listed in `lightning_modules.commands.main`.
"""

import operator
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
import yaml
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf.errors import OmegaConfBaseException

import datamodules.bfcl.prompts  # YAML may then use bare class names
import datamodules.prompts
import datamodules.sft
import datamodules.toolbox.pretraining  # noqa: F401
import lightning_modules.bfcl.module
import lightning_modules.grpo
import lightning_modules.srml  # noqa: F401
from datamodules.system.command_line import SentenceParser
from datamodules.system.errors import OF_PYTHON, run_folder
from datamodules.system.files import check_writable
from datamodules.system.redaction import keep_secrets_of, redact_settings, refuse_masked
from lightning_modules.callbacks.board import RunLogger
from lightning_modules.callbacks.ending import interrupted
from lightning_modules.callbacks.files import ExportHF, MetricsCSV, RolloutWriter
from lightning_modules.callbacks.progress import Progress
from lightning_modules.callbacks.samples import RolloutTable, SampleTable
from lightning_modules.callbacks.summary import RunSummary
from lightning_modules.checkpointing.find import resolve_checkpoint, step_of
from lightning_modules.checkpointing.formats import AnyCheckpointIO
from lightning_modules.checkpointing.last import LastCheckpoint
from lightning_modules.checkpointing.resume import ExactResume
from lightning_modules.commands.checks import (
    check_alone,
    check_attention,
    check_dirpaths,
    check_processes,
    check_reads_safely,
    check_sections,
    check_seed,
    check_shards_by_model,
    check_trainer_settings,
    refuse_nulls,
)
from lightning_modules.commands.given import Given, nested_nulls, no_settings, read
from lightning_modules.commands.main import main as main
from lightning_modules.commands.meant import explained
from lightning_modules.commands.old_keys import read_old_keys
from lightning_modules.commands.options import help_on
from lightning_modules.commands.overlays import without_training
from lightning_modules.commands.quiet import be_quiet
from lightning_modules.commands.run_folders import RunTrainer, new_folder
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.objectives import PolicyLoss
from lightning_modules.policy.weights import check_model

set_parsing_settings(subclasses_enabled=[PolicyLoss])  # jsonargparse takes a dataclass as it is, unless told so


RESTORES = "checkpoint_connector.py"  # of Lightning
CALLBACKS = {
    "last_checkpoint": LastCheckpoint,
    "best_checkpoint": ModelCheckpoint,
    "progress": Progress,
    "samples": SampleTable,
    "rollouts": RolloutTable,
}
"""Callbacks that a YAML may set and no overlay can drop, by their groups of settings."""
ROOTS = {"model": EvaluationModule, "data": LightningDataModule, "trainer": Trainer, **CALLBACKS}
"""The groups of settings, and their classes for help."""


class Parser(SentenceParser, LightningArgumentParser):
    """Lightning's parser, whose errors are one sentence, with what may be meant."""

    given: Sequence[Given] = ()  # the command line; none of the parsers of classes within it

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Parse, and name the key of a `${…}` that cannot be resolved."""
        try:
            return super().parse_args(*args, **options)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            self.error(f"{error.full_key or 'a YAML'}: a ${{…}} in its value cannot be resolved: {reason}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report an error and what may be meant; the parser of a class within passes it on as it is."""
        super().error(explained(message, self.given, ROOTS) if self.given else message, ex)


class SaveRedactedConfig(SaveConfigCallback):
    """Saves the settings to `config.yaml`, with secrets masked, and gives them to loggers of one's own."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        super().__init__(parser, redact_settings(config), **options)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the settings to each logger but ours, which lists some of them; Lightning calls this on rank 0."""
        others = [logger for logger in trainer.loggers if not isinstance(logger, RunLogger)]
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False)) if others else {}
        for logger in others:
            logger.log_hyperparams(settings)


class FunReasonCLI(LightningCLI):
    """One model, one DataModule, one logger; checkpoints `last` (every so many steps) and `best` (by validation).

    Args:
        args: Command line, which begins with a subcommand if one is run.
        run: Whether to run a subcommand; False only builds model, data and trainer, as a notebook wants them.
    """

    starts = True  # whether a subcommand begins a run, which takes a folder

    def __init__(self, args: Sequence[str], run: bool = True) -> None:
        be_quiet()
        self.given = read(args)
        super().__init__(
            EvaluationModule,
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
                "num_sanity_val_steps": 1,  # and of that batch SANITY_ROWS alone
                "callbacks": [ExactResume(), RunSummary(), MetricsCSV(), RolloutWriter(), ExportHF()],
            },
            seed_everything_default=42,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf", "prog": "funreason"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """The one that is run: parsers of all four took half of the time until a command line is read."""
        return {name: skipped for name, skipped in super().subcommands().items() if Given(name) in self.given[:1]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, and give the data the model's tokenizer."""
        for name, kind in CALLBACKS.items():
            parser.add_lightning_class_args(kind, name)
        best = {"filename": "best-{step:06d}", "auto_insert_metric_name": False, "enable_version_counter": False}
        best |= {"monitor": "tool/exact_match", "mode": "max"}
        parser.set_defaults({f"best_checkpoint.{key}": value for key, value in best.items()})
        parser.add_argument(
            "--fit_anyway",
            action="store_true",
            help="start also what is estimated to need more memory than a GPU has (default: False)",
        )
        parser.link_arguments("model.init_args.init_from", "data.init_args.tokenizer")
        steps = ("model.init_args.inner_epochs", "model.init_args.mini_batches")
        parser.link_arguments(steps, "data.init_args.repeats", compute_fn=operator.mul)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that knows the command line when it reports an error."""
        parser = super().init_parser(**kwargs)
        parser.given = self.given
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Show help on a setting, or parse and refuse a seed that not every generator takes."""
        if text := help_on(self.given, ROOTS):
            print(text)
            sys.exit(0)
        if fault := no_settings(self.given):
            parser.error(fault)
        try:
            given = nested_nulls(without_training(read_old_keys(self.given)))
        except ValueError as error:
            parser.error(str(error))
        super().parse_arguments(parser, [one.word for one in given])
        config = self.config[self.config["subcommand"]] if "subcommand" in self.config else self.config
        check_seed(config.get("seed_everything"))

    def _parse_ckpt_path(self) -> None:
        """Leave a checkpoint to who loads it: Lightning would read it here, and take settings that a file holds."""

    def before_instantiate_classes(self) -> None:
        """Find folder and checkpoint before anything loads; predictions go to disk, and we print the metrics."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        check_sections(config, ROOTS)
        refuse_masked(config)
        keep_secrets_of(config)
        root = config["trainer"]["default_root_dir"] or "."
        config["trainer"]["default_root_dir"] = str(check_writable("trainer.default_root_dir", root))
        check_trainer_settings(config["trainer"])
        if self.subcommand in (None, "fit"):  # the others write none, where these folders may not be
            check_dirpaths(config)
        for key, kind in {"model": None, "data": None, "trainer": RunTrainer}.items():
            refuse_nulls(key, kind, config[key])
        if config.get("ckpt_path") is not None:
            config["ckpt_path"] = resolve_checkpoint(config["ckpt_path"])
        if self.subcommand == "predict":
            config["return_predictions"] = False
        elif self.subcommand in ("validate", "test"):
            config["verbose"] = False

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Give the run a new folder under `trainer.default_root_dir`; `trainer.logger` may log elsewhere."""
        config = self._get(self.config_init, "trainer")
        if isinstance(config["callbacks"], Callback):  # Lightning takes one for a list of it, too
            config["callbacks"] = [config["callbacks"]]
        ours = config["logger"] in (None, True)
        if not any(isinstance(callback, ProgressBar) for callback in config["callbacks"] or []):
            kwargs["enable_progress_bar"] = False  # Lightning's counts batches, not optimizer steps
            self._get(self.config_init, "progress").bars = config["enable_progress_bar"] in (None, True)
        if ours:
            kwargs["logger"] = False  # ours takes its place
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, LookupError, RuntimeError, ImportError) as error:  # about what it was given
            raise ValueError(f"trainer: {error}") from error
        self._check_trainer(trainer)
        self._place(trainer, config["default_root_dir"], ours)
        if self.subcommand in ("validate", "test"):
            trainer.step_of_model = step_of(self._get(self.config_init, "ckpt_path") or self.model.init_from)
        trainer.fit_anyway = bool(self._get(self.config_init, "fit_anyway"))
        last = self._get(self.config_init, "last_checkpoint")
        trainer.strategy.checkpoint_io = AnyCheckpointIO(last.fsync, last.asynchronous)
        return trainer

    def _check_trainer(self, trainer: Trainer) -> None:
        """Refuse a trainer that this run cannot have."""
        check_processes(trainer)
        check_alone(trainer)
        check_shards_by_model(trainer.strategy)
        if self._get(self.config_init, "ckpt_path"):
            check_reads_safely(trainer.strategy)

    def _place(self, trainer: Trainer, root: str, ours: bool) -> None:
        """Give the run its folder under the root, and our logger, which knows it, the logging if that is `ours`."""
        runs = self.starts and self.subcommand is not None and not trainer.fast_dev_run and trainer.is_global_zero
        kind = f"{self.model.method}-{self.subcommand or 'fit'}"
        place = RunLogger(root, name="", version=new_folder(Path(root), kind, runs), default_hp_metric=False)
        if ours and not trainer.fast_dev_run:
            trainer.loggers = [place]
        elif not ours:
            for callback in trainer.checkpoint_callbacks:
                callback.dirpath = callback.dirpath or os.path.join(place.log_dir, "checkpoints")
        trainer.place = place

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command, if its model can be; blame a checkpoint for what fails while a run is put back to it."""
        kernel = self.model.attn_implementation
        check_attention(kernel, self.trainer.strategy.root_device)
        check_model(self.model.init_from, kernel)  # rows may take long to read
        try:
            super()._run_subcommand(subcommand)
        except OF_PYTHON as error:
            frames = traceback.extract_tb(error.__traceback__)
            if not any(Path(frame.filename).name == RESTORES and "restore" in frame.name for frame in frames):
                raise
            path, words = self._get(self.config_init, "ckpt_path"), " ".join(str(error).split())
            raise ValueError(
                f"--ckpt_path {path} is no checkpoint of such a run, or is damaged: what is read of it ends in "
                f"{type(error).__name__}: {words}"
            ) from error

    def before_fit(self) -> None:
        """A rank that fails alone must not wait for the others to save with it."""
        if self.trainer.world_size > 1:
            for callback in self.trainer.checkpoint_callbacks:
                callback.save_on_exception = False


def run(words: list[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`; SIGTERM ends it with a checkpoint and exit code 143, Ctrl-C with 130.

    Raises:
        ValueError: Lightning finds that settings do not fit together, or not this machine.
    """
    try:
        FunReasonCLI(words)
        if dist.is_initialized():  # of NCCL Lightning does it, at exit
            # Gloo's threads let go of a collective's tensors under the interpreter's lock; one that ends first aborts.
            dist.destroy_process_group()
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    except SystemExit as end:
        terminated = isinstance(end, SIGTERMException)
        if not terminated and not isinstance(end.__context__, KeyboardInterrupt):  # of which Lightning makes an exit
            raise
        first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
        if first and (advice := interrupted(run_folder.get())):
            print(advice, flush=True)
        sys.exit(143 if terminated else 130)
