"""The end of a run: a box with its last metrics, and the next commands, ready to paste."""

import json
import shlex
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.base import XLAMDataModule
from datamodules.system.escaping import visible
from lightning_modules.checkpointing.find import step_of

COMMANDS = 3  # shown at most
LONGEST_QUERY = 160  # characters of a request in a command


def ended(trainer: Trainer, log_dir: str, seconds: float) -> str:
    """The box, and below it the next commands.

    Args:
        trainer: What has trained.
        log_dir: The run's folder.
        seconds: How long the training took.
    """
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    best = next((callback for callback in callbacks if callback.monitor and callback.best_model_path), None)
    last = next((callback.best_model_path for callback in callbacks if not callback.monitor), "")
    if has_checkpoint(Path(log_dir)):
        rows = {"steps": f"{trainer.global_step:,} in {seconds:,.0f} s"}
    elif trainer.ckpt_path:
        limits = "trainer.max_steps, max_epochs and max_time (over all its runs)"
        rows = {"steps": f"none: {trainer.ckpt_path} has taken all that {limits} ask for"}
    else:
        rows = {"steps": "none: trainer.max_time, or a callback, has ended the run before the first"}
    if best is not None:
        score = f"{best.monitor} {float(best.best_model_score):.4f}"
        gone = "" if Path(best.best_model_path).exists() else ", which is no longer there"
        rows["best"] = f"{score} at step {step_of(best.best_model_path)}: {best.best_model_path}{gone}"
    if last:
        rows["checkpoint"] = last
    model = Path(log_dir) / "hf"
    rows["model"] = f"{model}, with the weights of step {trainer.global_step:,}" if model.is_dir() else "none yet"
    commands = next_commands(trainer, Path(log_dir), best.best_model_path if best else "")
    return "\n".join([box("done", rows), *(["next:"] if commands else []), *(f"  {command}" for command in commands)])


def next_commands(trainer: Trainer, run: Path, best: str) -> list[str]:
    """Up to three commands that make sense after a run.

    Args:
        trainer: What has trained.
        run: The run's folder.
        best: Its best checkpoint, or "".
    """
    folder = shlex.quote(str(run))
    if not (run / "hf").is_dir():
        saved = run if has_checkpoint(run) else trainer.ckpt_path
        return [f"funreason export --ckpt_path {shlex.quote(str(saved))}"] if saved else []
    commands = [question(trainer.datamodule, run)] if getattr(trainer.datamodule, "val_rows", None) else []
    if best and Path(best).exists() and step_of(best) != trainer.global_step:
        commands.append(f"funreason export --ckpt_path {shlex.quote(best)}")
    if held_out := getattr(trainer.datamodule, "hparams", {}).get("val_path"):
        paths = f"--model.init_from {folder} --data.path {shlex.quote(str(held_out))}"
        commands.append(f"funreason test --config {shlex.quote(str(run / 'config.yaml'))} {paths}")
    commands += [f"funreason play {folder}", f"funreason serve {folder}"]
    return [visible(command) for command in commands if command][:COMMANDS]


def question(data: XLAMDataModule, run: Path) -> str:
    """The command that asks the model one of the rows validated on, whose tools it writes; "" where none is short."""
    rows, indices = (data.val_rows, data.val_indices) if len(data.val_indices) else (data.rows, data.train_indices)
    asked = [
        example
        for example in rows.examples(indices[:32])
        if example.query.isprintable() and len(example.query) <= LONGEST_QUERY and not json.loads(example.history)
    ]
    if not asked:
        return ""
    file = run / "tools.json"
    file.write_text(json.dumps(json.loads(asked[0].tools), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"funreason ask {shlex.quote(str(run))} {shlex.quote(asked[0].query)} --tools {shlex.quote(str(file))}"


def interrupted(run: Path | None) -> str:
    """The commands that resume an interrupted run, or use it as it is; "" if it has no checkpoint."""
    if run is None or not (run / "config.yaml").is_file() or not has_checkpoint(run):
        return ""
    folder = shlex.quote(str(run))
    return "\n".join(
        [
            "interrupted; resume:",
            f"  funreason fit --config {shlex.quote(str(run / 'config.yaml'))} --ckpt_path {folder}",
            "or use it as it is:",
            f"  funreason export --ckpt_path {folder} --output_dir {shlex.quote(str(run / 'hf'))}",
        ]
    )


def has_checkpoint(run: Path) -> bool:
    """Whether a run's folder holds a checkpoint; one that was resumed at its end has taken no step and written none."""
    return any(run.glob("checkpoints/*.ckpt"))


def box(title: str, rows: dict[str, str]) -> str:
    """Rows of a name and a value in a frame, of ASCII where the terminal's encoding knows no other."""
    lines = [visible(f"{name:<12}{value}") for name, value in rows.items()]
    width = max(map(len, lines))
    top, side, bottom, edge = ("┌┐", "│", "└┘", "─")
    try:
        (top + side + bottom + edge).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        top, side, bottom, edge = ("++", "|", "++", "-")
    head = f"{edge} {title} ".ljust(width + 2, edge)
    framed = [f"{side} {line:<{width}} {side}" for line in lines]
    return "\n".join([f"{top[0]}{head}{top[1]}", *framed, f"{bottom[0]}{edge * (width + 2)}{bottom[1]}"])
