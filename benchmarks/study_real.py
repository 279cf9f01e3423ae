"""The study's runs on a real pretrained model and real rows: arms, the rows they take, one run.

Every arm has the same budget: one learning rate, the same rows in the order of its seed, as many optimizer steps. A run
is the commands that a user would give: `funreason fit` by `configs/finetune.yaml` or `configs/rl.yaml`, then
`funreason validate` on rows whose tools were never offered in training, and `funreason test` on rows of BFCL.
"""

import csv
import gc
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.study import Place, Run
from benchmarks.study_rows import BFCL, FACTS, HELD_OUT, RL_ROWS, TEXT, TRAIN, lines
from datamodules.bfcl.package import find_package
from datamodules.bfcl.rows import CATEGORIES
from datamodules.system.files import remove
from lightning_modules.bfcl.scores import Score, summarize
from lightning_modules.commands.main import run as command

ROOT = Path(__file__).resolve().parents[1]
BEST = "srml_0.7"  # what reinforcement learning starts from: the papers' alpha, chosen before any result
STILL = "rate_0"  # learns nothing: samples its start for the prompts and with the random numbers of those that do
LEARNING_RATE, RL_LEARNING_RATE = 3e-4, 1e-4
BATCH, LONGEST, ROOM = 8, 640, 448  # rows of a step, tokens of a row, and how many more text and tools of BFCL take
RL_STEPS, PROMPTS, GROUP, RL_TOKENS = 25, 8, 8, 128
ANSWER_TOKENS = {"srml_r1": 768}  # chains of thought by R1 are long
SHORT_ANSWER = 256
ARMS: dict[str, list[str]] = {
    "srml_0.7": ["--model.cot_weight=0.7"],
    "sft": ["--model.balance=sft"],
    "srml_0.5": ["--model.cot_weight=0.5"],
    "srml_learnable": ["--model.balance=learnable", "--model.alpha_lr_mult=10"],
    "srml_fcdr": ["--model.cot_weight=0.5"],
    "srml_r1": ["--model.cot_weight=0.5"],
}
OWN = "_own"
SHORTER = {"srml_0.7_60": 60}  # steps of an arm that is the beginning of another
ARMS |= {f"{arm}{OWN}": ARMS[arm] for arm in ("sft", "srml_0.5", "srml_0.7")}
ARMS |= {"srml_0.7_60": ARMS["srml_0.7"]}  # two CPU cores train it in a quarter of an hour
"""Supervised arms, by what differs from `configs/finetune.yaml`. They are asked as BFCL asks, text and tools, and those
that end in `_own` by this project's text, after which Gemma 3 270M wrote no call under BFCL's. All take as many steps,
but for those of `SHORTER`: they see every row once, or the fewer of `OWN_ROWS` several times."""
RL_ARMS: dict[str, list[str]] = {
    # plain GRPO does not measure the entropy of chains of thought: this bonus is far below the rounding of advantages
    "grpo": ["--model.entropy_bonus.scale=1e-9"],
    "egpo": ["--model.entropy_bonus.scale=0.4"],
    "grpo_format": [
        *("--model.entropy_bonus.scale=1e-9", "--model.reward=rewards.FunctionCallReward"),
        "--model.reward.format_bonus=0.5",
    ],
    STILL: ["--model.entropy_bonus.scale=1e-9", "--model.learning_rate=0"],
}
"""Arms that start from `BEST`, likewise."""
ORDER = [BEST, "sft", "grpo", "egpo", "base", "srml_0.5", "srml_learnable", "srml_fcdr", "grpo_format", "srml_r1"]
ORDER += [arm for arm in (*ARMS, *RL_ARMS) if arm not in ORDER]
"""Of all arms: what others wait for, then what takes longest, and last what can best be missed."""
OWN_ROWS = {"srml_fcdr": "fcdr.jsonl", "srml_r1": "r1.jsonl"}
TRAINER = ["--trainer.logger=false", "--trainer.devices=1"]
CURVES = {
    "reward": "reward/mean",
    "exact_match": "rollout/exact_match",
    "kl": "policy/kl",
    "entropy": "policy/entropy",
    "cot_entropy": "entropy_bonus/cot_entropy",
    "completion_length": "completion/mean_length",
    "equal_groups": "reward/frac_zero_std",
}
LOSSES = {name: f"train/{name}" for name in ("loss_cot", "loss_call", "weight_cot", "tokens_cot", "tokens_call")}
LAST = 20  # steps that a loss in training is the mean of
TEXT_TOKENS, TEXT_CHUNKS = 512, 8  # of plain text, of each kind


def runs(quick: bool, seeds: Sequence[int]) -> list[Run]:
    """All runs, in the order in which they are to be started."""
    seeds = seeds[:1] if quick else seeds
    common = {"learning_rate": LEARNING_RATE, "batch_size": BATCH, "lora_r": 16}
    rl = {"learning_rate": RL_LEARNING_RATE, "prompts": PROMPTS, "group": GROUP, "steps": RL_STEPS, "lora_r": 16}
    rl |= {"rollout_max_new_tokens": RL_TOKENS, "temperature": 1.0, "file": RL_ROWS}
    planned = [Run("real", "base", seeds[0])]
    for seed in seeds:
        for arm, words in ARMS.items():
            file = OWN_ROWS.get(arm, TRAIN)
            planned.append(Run("real", arm, seed, common | {"file": file, "options": words} | steps_of(arm)))
        for arm, words in RL_ARMS.items():
            planned.append(Run("real", arm, seed, rl | {"options": words} | steps_of(arm), BEST))
    return sorted(planned, key=lambda run: ORDER.index(run.arm))


def steps_of(arm: str) -> dict[str, int]:
    """What the settings of an arm say about its steps, where they are fewer than those of its kind."""
    return {"steps": SHORTER[arm]} if arm in SHORTER else {}


def execute(run: Run, place: Place) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, if the arm trains, and evaluate what has learnt; leaves the weights of `BEST` alone in the work folder.

    Returns:
        The metrics, and what is to be added to the settings of the line.
    """
    folder, facts = place.folder(run.arm, run.seed), facts_of(place)
    metrics, model = train(run, place)
    limit = 16 if place.quick else ANSWER_TOKENS.get(run.arm, SHORT_ANSWER)
    if run.arm != STILL:
        metrics |= held_out(model, place, folder, limit) | bfcl(model, place, folder, limit, facts["bfcl_sizes"])
        metrics["text_loss"] = text_loss(model, place)
    if run.arm not in ("base", BEST):
        remove(folder)
    sizes = {"train_rows": facts["rows"].get(run.settings.get("file")), "data": facts["hashes"]}
    return metrics, sizes | {"held_out_rows": len(metrics.get("heldout_rows", [])), "max_new_tokens": limit}


def train(run: Run, place: Place) -> tuple[dict[str, Any], str]:
    """Train, if the arm trains; the metrics of that, and the folder of the model."""
    folder = place.folder(run.arm, run.seed)
    remove(folder)
    if run.arm == "base":
        return {}, place.model
    funreason(fit_words(run, place, facts_of(place)))
    logged = read_metrics(folder / "fit")
    return rl_metrics(logged) if run.after else sft_metrics(logged), str(weights(place, run.arm, run.seed))


def facts_of(place: Place) -> dict[str, Any]:
    """What is to be known of the prepared rows."""
    facts: dict[str, Any] = json.loads((place.data / FACTS).read_text(encoding="utf-8"))
    return facts


def funreason(words: list[str]) -> None:
    """Run a command in this process, and free the accelerator, where other runs need the memory."""
    command(words)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fit_words(run: Run, place: Place, facts: dict[str, Any]) -> list[str]:
    """The words after `funreason` that train a run."""
    own = run.arm.endswith(OWN)
    rows, steps = place.data / run.settings["file"], run.settings.get("steps", math.ceil(facts["rows"][TRAIN] / BATCH))
    if run.after:
        start = weights(place, run.after, run.seed)
        words = [
            *(f"--config={ROOT / 'configs/rl.yaml'}", f"--model.init_from={start}", f"--data.path={rows}"),
            *(f"--model.learning_rate={RL_LEARNING_RATE}", "--model.sampling.temperature=1.0"),
            *(f"--data.prompts_per_step={PROMPTS}", f"--model.sampling.group_size={GROUP}"),
            f"--data.max_prompt_length={LONGEST + ROOM}",
            f"--model.generator.init_args.max_new_tokens={16 if place.quick else RL_TOKENS}",
        ]
    else:
        words = [
            *(f"--config={ROOT / 'configs/finetune.yaml'}", f"--model.init_from={place.model}", f"--data.path={rows}"),
            *(f"--model.learning_rate={LEARNING_RATE}", f"--data.batch_size={BATCH}"),
            f"--data.max_length={facts['longest'][rows.name] + (0 if own else ROOM)}",
        ]
    if not own:
        words += [f"--data.system_prompt={facts['system_prompt']}", "--data.tool_form=bfcl"]
    words += [
        *(f"--seed_everything={run.seed}", f"--trainer.default_root_dir={place.folder(run.arm, run.seed) / 'fit'}"),
        *("--data.val_fraction=0", "--model.gradient_checkpointing=false", *TRAINER),
        *("--trainer.max_epochs=-1", f"--trainer.max_steps={2 if place.quick else steps}"),
        *("--last_checkpoint.every_n_train_steps=1000000", "--last_checkpoint.fsync=false"),
    ]
    return ["fit", *words, *run.settings["options"]]


def weights(place: Place, arm: str, seed: int) -> Path:
    """The exported weights of a run.

    Raises:
        FileNotFoundError: There are none.
    """
    found = list((place.folder(arm, seed) / "fit").glob("*/hf"))
    if not found:
        raise FileNotFoundError(f"{place.folder(arm, seed)} holds no weights of {arm}, seed {seed}: run that arm first")
    return found[0]


def generation() -> list[str]:
    """How evaluations generate: as many rows together as the device holds."""
    budget = 131072 if torch.cuda.is_available() else 32768
    return [f"--model.generator.init_args.token_budget={budget}", "--trainer.precision=bf16-mixed", *TRAINER]


def held_out(model: str, place: Place, folder: Path, limit: int) -> dict[str, Any]:
    """Losses by segment on the held-out rows, and exact matches of what is generated for them."""
    root, rows = folder / "held_out", lines(place.data / HELD_OUT)
    funreason(
        [
            *(
                "validate",
                f"--config={ROOT / 'configs/finetune.yaml'}",
                "--model.lora=null",
                f"--model.init_from={model}",
            ),
            *(f"--data.path={place.data / HELD_OUT}", "--data.limit_val=null", "--data.eval_batch_size=1000"),
            *(f"--trainer.default_root_dir={root}", f"--samples.rows={len(rows)}"),
            *(f"--model.generator.init_args.max_new_tokens={limit}", *generation()),
        ]
    )
    logged = {name: values[-1] for name, values in read_metrics(root).items()}
    samples = {row["id"]: row for row in lines(next(root.glob("*/samples.jsonl")))}
    matched = [int(samples[row["id"]]["parts"]["exact_match"]) for row in rows]
    rates = {name.removeprefix("tool/"): logged[name] for name in logged if name.startswith("tool/")}
    losses = {segment: logged[f"val/loss_{segment}"] for segment in ("cot", "call")}
    return {"heldout": rates, "heldout_rows": matched, "heldout_loss": losses} | {
        "heldout_length": logged["completion/mean_length"],
        "heldout_cut": logged["completion/truncated_frac"],
    }


def bfcl(model: str, place: Place, folder: Path, limit: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Accuracy on the drawn rows of BFCL, by category and by the leaderboard's columns, and of each row."""
    root, package = folder / "bfcl", find_package(str(place.data / BFCL))
    funreason(
        [
            *("test", f"--config={ROOT / 'configs/bfcl.yaml'}", f"--model.init_from={model}"),
            *(f"--data.path={place.data / BFCL}", "--data.eval_batch_size=2000", f"--trainer.default_root_dir={root}"),
            *(f"--model.generator.init_args.max_new_tokens={limit}", *generation()),
        ]
    )
    run = next(root.iterdir())
    wrong = {line["id"] for line in lines(run / "wrong.jsonl")}
    drawn = {c: [line["id"] for line in lines(package.folder / "data" / f"{package.prefix}{c}.json")] for c in sizes}
    right = {category: [int(row not in wrong) for row in rows] for category, rows in drawn.items()}
    accuracy = {category: sum(rows) / len(rows) for category, rows in right.items()}
    columns = summarize({c: Score(accuracy[c], sizes[c]) for c in CATEGORIES[package.version]}, package.version)
    tokens = [line["output_token_count"] for file in run.glob("result/*/*.json") for line in lines(file)]
    return {
        "bfcl": accuracy,
        "bfcl_columns": {name: score.accuracy for name, score in columns.items()},
        "bfcl_rows": [hit for category in CATEGORIES[package.version] for hit in right[category]],
        "bfcl_sizes": {category: len(right[category]) for category in CATEGORIES[package.version]},
        "bfcl_length": sum(tokens) / len(tokens),
        "bfcl_cut": sum(count >= limit for count in tokens) / len(tokens),
    }


@torch.no_grad()
def text_loss(model: str, place: Place) -> dict[str, float]:
    """Nats a token of plain text by kind: what the model has forgotten of it shows as more than the base model's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(model)
    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    losses = {}
    for kind, text in json.loads((place.data / TEXT).read_text(encoding="utf-8")).items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        width = TEXT_TOKENS - len(start)
        chunks = [start + ids[at : at + width] for at in range(0, len(ids) - width + 1, width)]
        chunks = chunks[: 1 if place.quick else TEXT_CHUNKS]
        nll = 0.0
        for chunk in chunks:
            batch = torch.tensor([chunk], device=device)
            logits = causal(batch).logits[0, :-1].float()
            nll += torch.nn.functional.cross_entropy(logits, batch[0, 1:], reduction="sum").item()
        losses[kind] = nll / (len(chunks) * (TEXT_TOKENS - 1))
    return losses


def read_metrics(root: Path) -> dict[str, list[float]]:
    """What the one run below a folder has logged, by name, in the order of the steps."""
    logged: dict[str, list[float]] = {}
    with next(root.glob("*/metrics.csv")).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            logged.setdefault(row["name"], []).append(float(row["value"]))
    return logged


def sft_metrics(logged: dict[str, list[float]]) -> dict[str, Any]:
    """Losses by segment of the last steps of training and their curves, every tenth step, and tokens trained on."""
    last = {name: sum(logged[key][-LAST:]) / len(logged[key][-LAST:]) for name, key in LOSSES.items()}
    curves = {name: _brief(logged[key][::10]) for name, key in LOSSES.items() if name.startswith("loss")}
    tokens = {name: sum(logged[LOSSES[name]]) for name in ("tokens_cot", "tokens_call")}
    return {"train": last | tokens, "curves": curves, "train_steps": len(logged["train/loss"])} | _time(logged)


def rl_metrics(logged: dict[str, list[float]]) -> dict[str, Any]:
    """The curves of reinforcement learning, a value for each step."""
    curves = {name: _brief(logged.get(key, [])) for name, key in CURVES.items()}
    return {"curves": curves, "train_steps": len(logged["reward/mean"])} | _time(logged)


def _time(logged: dict[str, list[float]]) -> dict[str, float]:
    return {"train_seconds": sum(logged["time/step"])}


def _brief(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
