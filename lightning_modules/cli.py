"""The commands that train or evaluate: `funreason fit|validate|test|predict --config FILE [--config OVERLAY]`.

All commands are listed in `lightning_modules.commands.main`.
"""

import logging
import operator
import os
import pkgutil
import sys
import traceback
import warnings
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

import datasets
import torch.distributed as dist
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

import datamodules.bfcl.prompts  # YAML may then use bare class names
import datamodules.prompts
import datamodules.sft
import datamodules.toolbox.pretraining  # noqa: F401
import lightning_modules.bfcl.module
import lightning_modules.grpo
import lightning_modules.srml  # noqa: F401
from datamodules.system.command_line import OF_PYTHON, SentenceParser, check_writable, run_folder
from datamodules.system.files import clear_unfinished
from datamodules.system.redaction import keep_secrets_of, redact_settings, refuse_masked
from lightning_modules.callbacks.board import RunLogger
from lightning_modules.callbacks.ending import interrupted
from lightning_modules.callbacks.files import ExportHF, MetricsCSV, RolloutWriter, SampleTable
from lightning_modules.callbacks.progress import Progress
from lightning_modules.callbacks.summary import RunSummary
from lightning_modules.callbacks.tables import RolloutTable
from lightning_modules.checkpointing.formats import AnyCheckpointIO
from lightning_modules.checkpointing.resume import ExactResume, LastCheckpoint, resolve_checkpoint, step_of
from lightning_modules.checkpointing.sharded import ReshardableCheckpoints
from lightning_modules.commands.main import main as main
from lightning_modules.commands.options import help_on
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.objectives import PolicyLoss

set_parsing_settings(subclasses_enabled=[PolicyLoss])  # jsonargparse takes a dataclass as it is, unless told so

LEAST = {"check_val_every_n_epoch": 1, "log_every_n_steps": 0, "num_sanity_val_steps": -1, "min_steps": 0}
LEAST |= {"min_epochs": 0, "val_check_interval": 0, "limit_train_batches": 0}
"""Settings of Lightning that it takes less of, and fails or does nothing."""
SHARES = {
    "val_check_interval": "give a share of an epoch or a number of steps",
    "limit_train_batches": "nothing would be trained on",
}
SECTIONS = ("model", "data", "trainer", "last_checkpoint", "best_checkpoint", "samples", "rollouts")
RESTORES = "checkpoint_connector.py"  # of Lightning
PER_CORE = 8  # processes that share a core without being a slip
BESIDE_THE_POINT = (
    "LightningCLI's args parameter is intended to run from within Python",  # so is main(args)
    "`ModelCheckpoint.monitor=.* could not find the monitored key",  # the run ends before its first validation
    "The dirpath has changed from",  # a resumed run writes a folder of its own
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
)
CHATTER += ("lightning.pytorch.accelerators.cuda", "lightning.fabric.accelerators.cuda")
"""Loggers of Lightning that tell of devices, seeds and other products; the table says what of it matters."""


ROOTS = {"model": EvaluationModule, "data": LightningDataModule, "trainer": Trainer, "samples": SampleTable}
ROOTS |= {"last_checkpoint": LastCheckpoint, "best_checkpoint": ModelCheckpoint, "rollouts": RolloutTable}
ROOTS |= {"progress": Progress}
"""Classes of the groups of settings, for their help."""


class Parser(SentenceParser, LightningArgumentParser):
    """Lightning's parser, whose errors are one sentence."""

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Parse, and name the key of a `${…}` that cannot be resolved; or show the help that is asked for."""
        words = list(args[0] if args and args[0] is not None else sys.argv[1:])
        if all(isinstance(word, str) for word in words) and (text := help_on(words, ROOTS)):
            print(text)
            sys.exit(0)
        try:
            return super().parse_args(*args, **options)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            self.error(f"{error.full_key or 'a YAML'}: a ${{…}} in its value cannot be resolved: {reason}")


class SaveRedactedConfig(SaveConfigCallback):
    """Saves the settings to `config.yaml`, but for what is secret."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        super().__init__(parser, redact_settings(config), **options)


class RunTrainer(Trainer):
    """Lightning's trainer, whose `log_dir` is the run's folder, whatever its loggers make of theirs."""

    step_of_model = 0  # of what a validation or test is of, which is where its scores belong
    place: RunLogger | None = None  # knows the folder; of loggers it is one only where no other is set

    @property
    def log_dir(self) -> str | None:
        """The run's folder; a collective, so that every rank has to ask."""
        if self.place is None or self.fast_dev_run:
            return super().log_dir
        folder = self.strategy.broadcast(self.place.log_dir)
        run_folder.set(Path(folder))  # where the traceback of what may go wrong is written
        return folder

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; of a mere validation or test, by the run that the model is of."""
        return super().global_step or self.step_of_model


class FunReasonCLI(LightningCLI):
    """One model, one DataModule, one logger; checkpoints `last` (every so many steps) and `best` (by validation).

    Args:
        args: Command line; `sys.argv` when None.
        run: Whether to run a subcommand; False only builds model, data and trainer, as a notebook wants them.
    """

    starts = True  # whether a subcommand begins a run, which takes a folder

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        be_quiet()
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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that a YAML may set but no overlay can drop, and give the data the model's tokenizer."""
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(ModelCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(SampleTable, "samples")
        parser.add_lightning_class_args(RolloutTable, "rollouts")
        best = {"filename": "best-{step:06d}", "auto_insert_metric_name": False, "enable_version_counter": False}
        best |= {"monitor": "tool/exact_match", "mode": "max"}
        parser.set_defaults({f"best_checkpoint.{key}": value for key, value in best.items()})
        parser.link_arguments("model.init_args.init_from", "data.init_args.tokenizer")
        steps = ("model.init_args.inner_epochs", "model.init_args.mini_batches")
        parser.link_arguments(steps, "data.init_args.repeats", compute_fn=operator.mul)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse a seed that not every generator takes."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]] if "subcommand" in self.config else self.config
        seed = config.get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise ValueError(f"seed_everything is {seed}; give a number from 0 to {2**32 - 1:,}.")

    def _parse_ckpt_path(self) -> None:
        """Leave a checkpoint to who loads it: Lightning would read it here, and take settings that a file holds."""

    def before_instantiate_classes(self) -> None:
        """Find folder and checkpoint before anything loads; predictions go to disk, and we print the metrics."""
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        for name in SECTIONS:
            if not isinstance(config[name], Namespace):
                raise ValueError(f"{name} must hold settings, and is {config[name]}: leave it out for its defaults")
        refuse_masked(config)
        keep_secrets_of(config)
        settle(config["trainer"])
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
        cores = os.cpu_count() or 1
        if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > PER_CORE * cores:
            raise ValueError(f"trainer.devices: {trainer.num_devices} processes are too many for {cores} cores")
        if self._get(self.config_init, "ckpt_path"):
            check_reads_safely(trainer.strategy)
        runs = self.starts and self.subcommand is not None and not trainer.fast_dev_run and trainer.is_global_zero
        kind = f"{self.model.method}-{self.subcommand or 'fit'}"
        root = config["default_root_dir"]
        place = RunLogger(root, name="", version=new_folder(Path(root), kind, runs), default_hp_metric=False)
        if self.subcommand in ("validate", "test"):
            trainer.step_of_model = step_of(self._get(self.config_init, "ckpt_path") or self.model.init_from)
        if ours and not trainer.fast_dev_run:
            trainer.loggers = [place]
        elif not ours:
            for callback in trainer.checkpoint_callbacks:
                callback.dirpath = callback.dirpath or os.path.join(place.log_dir, "checkpoints")
        trainer.place = place
        trainer.strategy.checkpoint_io = AnyCheckpointIO(self._get(self.config_init, "last_checkpoint").fsync)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command, and blame a checkpoint for what fails while a run is put back to it."""
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


def be_quiet() -> None:
    """Silence what other libraries say of themselves: advice, devices, bars; their warnings stay."""
    for message in BESIDE_THE_POINT:
        warnings.filterwarnings("ignore", message=message)
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()


def new_folder(root: Path, kind: str, claim: bool) -> str:
    """Name the folder of a run: `srml-fit-0`, or what number follows those that there are.

    Args:
        root: Where the folders of runs are.
        kind: What is done, and by which command.
        claim: Whether to make it, so that of runs that start at once each has its own, and to clear from the earlier
            ones what a kill has left half-written.
    """
    if claim:
        root.mkdir(parents=True, exist_ok=True)
        for run in (*root.glob("*-*"), *root.glob("version_*")):  # so they were called once
            clear_unfinished(run)
            clear_unfinished(run / "checkpoints")
    numbers = [run.name.removeprefix(f"{kind}-") for run in root.glob(f"{kind}-*")]
    number = max((int(n) + 1 for n in numbers if n.isdecimal()), default=0)
    while claim and not made(root / f"{kind}-{number}"):
        number += 1
    return f"{kind}-{number}"


def made(folder: Path) -> bool:
    """Make a folder; False if somebody else has."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def check_reads_safely(strategy: Strategy) -> None:
    """Refuse to resume a checkpoint with a strategy that reads it in a way of its own.

    Raises:
        ValueError: Lightning's FSDP and DeepSpeed would run code that a checkpoint holds.
    """
    if type(strategy).load_checkpoint not in (Strategy.load_checkpoint, ReshardableCheckpoints.load_checkpoint):
        raise ValueError(
            f"trainer.strategy: {type(strategy).__name__} would run code that is hidden in --ckpt_path; take FSDP2 or "
            "FSDP1 of lightning_modules.strategies, ddp or auto, which all read checkpoints of one another"
        )


def refuse_nulls(key: str, kind: Any, settings: Any) -> None:
    """Refuse `null` where a class takes none; jsonargparse lets it pass for anything.

    Args:
        key: What the settings are under.
        kind: The class that they are for, unless they name it in `class_path`.
        settings: Its arguments, or `class_path` and `init_args`.

    Raises:
        ValueError: Naming the first such setting.
    """
    if isinstance(settings, Namespace) and "class_path" in settings:
        kind, settings = pkgutil.resolve_name(settings["class_path"]), settings.get("init_args")
    if not isinstance(settings, Namespace) or not isinstance(kind, type):
        return
    wanted: dict[str, Any] = {}
    for parent in reversed(kind.__mro__):
        wanted |= getattr(vars(parent).get("__init__"), "__annotations__", {})
    for name, value in vars(settings).items():
        kinds = get_args(wanted.get(name)) or (wanted.get(name, Any),)
        if value is None and not {None, type(None), Any} & {*kinds} and not any(isinstance(k, str) for k in kinds):
            raise ValueError(f"{key}.{name} is null, and must have a value: leave it out for its default")
        refuse_nulls(f"{key}.{name}", next(filter(is_dataclass, kinds), None), value)


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
    check_writable("trainer.default_root_dir", root)
    trainer["default_root_dir"] = os.path.expanduser(root)
    for name, least in LEAST.items():
        value = trainer[name]
        if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
            raise ValueError(f"trainer.{name} is {value}; give at least {least}.")
        if name in SHARES and value == 0:
            raise ValueError(f"trainer.{name} is 0: {SHARES[name]}.")
    if trainer["gradient_clip_val"] is not None or trainer["gradient_clip_algorithm"] is not None:
        raise ValueError("trainer.gradient_clip_val and gradient_clip_algorithm are not used: set model.max_grad_norm")
    if trainer["accumulate_grad_batches"] != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches: {trainer['accumulate_grad_batches']} is not used: data.batch_size sets "
            "the rows of an optimizer step, data.micro_batch_tokens (with rollouts model.micro_batch_tokens) those of "
            "one pass"
        )


def run(words: list[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`; SIGTERM ends it with a checkpoint and exit code 143.

    Raises:
        ValueError: Lightning finds that settings do not fit together, or not this machine.
    """
    try:
        FunReasonCLI(words)
        if dist.is_available() and dist.is_initialized():  # of NCCL Lightning does it, at exit
            # Gloo's threads let go of a collective's tensors under the interpreter's lock; one that ends first aborts.
            dist.destroy_process_group()
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    except SystemExit as end:
        stopped = isinstance(end.__context__, KeyboardInterrupt)  # Lightning has made an exit of it
        if (stopped or isinstance(end, SIGTERMException)) and (advice := interrupted(run_folder.get())):
            if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
                print(advice, flush=True)
        if isinstance(end, SIGTERMException):
            sys.exit(143)
        raise
