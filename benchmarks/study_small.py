"""The study's runs on the tiny base model and the shipped corpus: many seeds, for what needs curves.

A seed draws its own training rows, their order and the sampling; the rows to test on are the same for all. Supervised
arms and fits of self-refinement have one learning rate, arms of reinforcement another, and every arm as many optimizer
steps as the arms that it is compared with. What reinforcement and self-refinement start from has two habits of
answering, as `toolbox:habits` has; one is wrong. What reinforcement starts from has practised for longer, because a
group of which no completion is right teaches nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks.study import Place, Run
from benchmarks.study_real import STILL, funreason, read_metrics, rl_metrics, sft_metrics, weights
from benchmarks.study_small_rows import ROWS, made_rows, spoiled
from datamodules.packing import CALL
from datamodules.refinement import cli as refinement
from datamodules.refinement import rounds
from datamodules.system.files import remove
from datamodules.toolbox.pretraining import PretrainingDataModule, make_document
from datamodules.xlam import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "assets/tiny-base"
STEPS, BATCH, LEARNING_RATE = 50, 8, 2e-3
PRACTICE_STEPS = 150
RL_STEPS, PROMPTS, GROUP = 48, 4, 8
RL_LEARNING_RATE = 3e-4  # at 1e-4 the arms were the same to three digits after 12 steps of one seed
ANSWER_TOKENS, LONG_ANSWER_TOKENS = 208, 432  # right answers to rows of a test have 200 at most, long ones 417
TEST_ROWS = {"heldout": 120, "unseen": 60}
POOL, ROUND_STEPS = 600, 25  # queries and optimizer steps of a round of self-refinement
READING_STEPS, READING_RATE = 150, 1e-3  # of arms whose base model is pre-trained further
TEXTS = 40  # documents of the base model's pre-training, none of which it has seen

SFT = ["--model.balance=sft"]
SRML = ["--model.cot_weight=0.7"]
SUPERVISED: dict[str, tuple[str, list[str]]] = {
    "start": ("habits", SRML),
    "practised": ("habits", SRML),
    "refined": ("refined", SRML),
    "sft": ("mixed", SFT),
    **{f"srml_{alpha}": ("mixed", [f"--model.cot_weight={alpha}"]) for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)},
    "srml_learnable": ("mixed", ["--model.balance=learnable", "--model.alpha_lr_mult=10"]),
    "srml_0.7_token": ("mixed", [*SRML, "--model.reduction=token"]),
    "sft_long": ("long", SFT),
    "srml_0.7_long": ("long", SRML),
    "corrupted": ("corrupted", SRML),
    "clean": ("clean", SRML),
    "after_code": ("mixed", SRML),
    "after_prose": ("mixed", SRML),
}
"""Supervised arms: the kind of their rows, and what differs from `configs/srml.yaml`."""
READ = {"after_code": "CodeDataModule", "after_prose": "ProseDataModule"}
"""What the base model reads first in the arms that have it pre-trained further; see `study_pretraining`."""
# plain GRPO does not measure the entropy of chains of thought: this bonus is far below the rounding of advantages
NO_BONUS = "--model.entropy_bonus.scale=1e-9"
REINFORCED: dict[str, list[str]] = {
    "grpo": [NO_BONUS],
    "egpo": ["--model.entropy_bonus.scale=0.4"],
    "grpo_format": [NO_BONUS, "--model.reward=rewards.FunctionCallReward", "--model.reward.format_bonus=0.5"],
    "egpo_lambda_0.1": ["--model.entropy_bonus.scale=0.1"],
    "egpo_lambda_1.6": ["--model.entropy_bonus.scale=1.6"],
    # the cap seldom binds where the scale is 0.4
    "egpo_1.6_divisor_1.25": ["--model.entropy_bonus.scale=1.6", "--model.entropy_bonus.divisor=1.25"],
    "egpo_1.6_divisor_4": ["--model.entropy_bonus.scale=1.6", "--model.entropy_bonus.divisor=4"],
    STILL: [NO_BONUS, "--model.learning_rate=0"],
}
"""Arms of reinforcement learning, by what differs from `configs/grpo.yaml`; they start from `practised`."""
CONTINUED = {"start_25": ("start", "habits", ROUND_STEPS), "refined_50": ("refined", "refined", 2 * ROUND_STEPS)}
"""Arms that train on, for as many steps as loops of self-refinement: their start, the kind of their rows, steps."""
LOOPS = {"self_refine_1": ("start", 1), "self_refine_2": ("self_refine_1", 2), "hard": ("refined", 2)}
"""Arms of self-refinement: what they start from, and their rounds."""
REFINED = Path("refine/refined.jsonl")  # in a run's folder
KEPT = ("start", "practised", "refined", "self_refine_1")  # whose folders other arms start from


def runs(quick: bool, seeds: Sequence[int]) -> list[Run]:
    """All runs, in the order in which they are to be started: seed by seed."""
    planned = []
    for seed in seeds[:1] if quick else seeds:
        planned.append(Run("small", "base", seed))
        for arm, (kind, options) in SUPERVISED.items():
            steps = PRACTICE_STEPS if arm == "practised" else STEPS
            planned.append(Run("small", arm, seed, {"rows": kind, "steps": steps, "options": options}))
        for arm, (start, kind, steps) in CONTINUED.items():
            planned.append(Run("small", arm, seed, {"rows": kind, "steps": steps, "options": SRML}, start))
        for arm, options in REINFORCED.items():
            planned.append(Run("small", arm, seed, {"steps": RL_STEPS, "options": options}, "practised"))
        for arm, (start, count) in LOOPS.items():
            settings = {"rounds": count, "pool": POOL, "steps_a_round": ROUND_STEPS}
            planned.append(Run("small", arm, seed, settings, start))
    return [run for run in planned if run.arm != "base" or run.seed == planned[0].seed]


def execute(run: Run, place: Place) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train as the arm says, and test what has learnt; the folders of `KEPT` stay, because other arms start from them.

    Returns:
        The metrics, and what is to be added to the settings of the line.
    """
    folder = place.folder(run.arm, run.seed)
    metrics, model = train(run, place)
    limit = LONG_ANSWER_TOKENS if run.settings.get("rows") == "long" else ANSWER_TOKENS
    if run.arm != STILL:
        for split, count in TEST_ROWS.items():
            metrics |= tested(model, folder / split, split, 16 if place.quick else count, limit)
        metrics["text_loss"] = {"pretraining": text_loss(model)}
    if run.arm not in KEPT:
        remove(folder)
    return metrics, {"max_new_tokens": limit}


def train(run: Run, place: Place) -> tuple[dict[str, Any], str]:
    """Train as the arm says; the metrics of that, and the folder of the model."""
    folder = place.folder(run.arm, run.seed)
    remove(folder)
    folder.mkdir(parents=True)
    if run.arm == "base":
        return {}, str(BASE)
    if run.arm in LOOPS:
        return {}, str(refine_itself(run, place))
    funreason(["fit", *fit_words(run, place)])
    logged = read_metrics(folder / "fit")
    metrics = rl_metrics(logged) if run.arm in REINFORCED else sft_metrics(logged)
    return metrics, str(weights(place, run.arm, run.seed))


def fit_words(run: Run, place: Place) -> list[str]:
    """The words after `funreason fit` that train a run."""
    folder = place.folder(run.arm, run.seed)
    rows = folder / "rows.jsonl"
    words = [
        f"--config={ROOT / 'configs' / ('grpo.yaml' if run.arm in REINFORCED else 'srml.yaml')}",
        *(f"--seed_everything={run.seed}", f"--trainer.default_root_dir={folder / 'fit'}", f"--data.path={rows}"),
        *("--trainer.limit_val_batches=0", "--trainer.logger=false", "--trainer.max_epochs=-1"),
        *("--last_checkpoint.every_n_train_steps=1000000", "--last_checkpoint.fsync=false"),
    ]
    steps = 2 if place.quick else run.settings["steps"]
    if run.arm in REINFORCED:
        write_jsonl(rows, made_rows("known", RL_STEPS * PROMPTS, run.seed + 1000))
        words += [
            f"--model.init_from={weights(place, run.after, run.seed)}",
            *(f"--data.prompts_per_step={PROMPTS}", f"--model.sampling.group_size={GROUP}"),
            f"--model.learning_rate={RL_LEARNING_RATE}",
            "--model.generator=lightning_modules.generators.HFGenerator",
            f"--model.generator.init_args.max_new_tokens={ANSWER_TOKENS}",
        ]
    else:
        kind = run.settings["rows"]
        if kind == "refined":
            refined = (
                place.folder(run.after, run.seed) / "refine/refined.jsonl" if run.after else refine(folder, run.seed)
            )
            rows.symlink_to(refined.resolve())
        else:
            write_jsonl(rows, made_rows(kind, max(ROWS, run.settings["steps"] * BATCH), run.seed))
        words += [
            *(f"--model.init_from={start_of(run, place)}", "--data.val_fraction=0"),
            *(f"--data.batch_size={BATCH}", f"--model.learning_rate={LEARNING_RATE}"),
            "--data.on_bad_row=skip",  # rows whose answer cannot be read
        ]
    return [*words, f"--trainer.max_steps={steps}", *run.settings["options"]]


def start_of(run: Run, place: Place) -> Path:
    """What supervised training starts from: another run, or the base model, which some arms pre-train further."""
    if run.after:
        return weights(place, run.after, run.seed)
    if run.arm not in READ:
        return BASE
    root = place.folder(run.arm, run.seed) / "pretrain"
    funreason(
        [
            *("fit", f"--config={ROOT / 'configs/pretrain.yaml'}", f"--seed_everything={run.seed}"),
            *(f"--data=benchmarks.study_pretraining.{READ[run.arm]}", f"--data.seed={run.seed}"),
            *(f"--model.init_from={BASE}", f"--model.learning_rate={READING_RATE}"),
            *(f"--trainer.max_steps={2 if place.quick else READING_STEPS}", f"--trainer.default_root_dir={root}"),
            *("--trainer.max_epochs=-1", "--trainer.logger=false", "--last_checkpoint.fsync=false"),
        ]
    )
    return next(root.glob("*/hf"))


def refine(folder: Path, seed: int) -> Path:
    """Refine the corrupted rows of a seed with FCDR; what is left of them."""
    corpus = spoiled(seed)
    words = [f"--corpus.rows={corpus.rows}", f"--corpus.seed={seed}", f"--corpus.share={corpus.share}"]
    refinement.main(
        ["--config", str(ROOT / "configs/refine_demo.yaml"), *words, "--output_dir", str(folder / "refine")]
    )
    return folder / REFINED


def refine_itself(run: Run, place: Place) -> Path:
    """Rounds of self-refinement from the run that this one starts from; the weights of the last round.

    A second round goes on where the first arm's loop has ended.
    """
    first = run.after if run.after in LOOPS else run.arm
    start = LOOPS[first][0]
    folder = place.folder(first, run.seed) / "loop"
    pool = folder.with_name("pool.jsonl")
    if start == "refined":
        pool = (place.folder(start, run.seed) / REFINED).with_name("rejected.jsonl")
    elif not pool.exists():
        write_jsonl(pool, made_rows("mixed", 8 if place.quick else POOL, run.seed + 2000))
    fit = [f"--config={ROOT / 'configs/srml.yaml'}", f"--seed_everything={run.seed}", "--data.val_fraction=0"]
    fit += ["--data.on_bad_row=skip"]  # rollouts with a special token as text
    fit += [f"--data.batch_size={BATCH}", f"--model.learning_rate={LEARNING_RATE}", "--trainer.max_epochs=-1", *SRML]
    fit += [f"--trainer.max_steps={2 if place.quick else ROUND_STEPS}"]
    words = ["--config", str(ROOT / "configs/self_refine.yaml"), "--init_from", str(weights(place, start, run.seed))]
    words += ["--pool", str(pool), "--val_path", "toolbox:heldout:20:1", "--output_dir", str(folder)]
    words += ["--rounds", str(run.settings["rounds"]), "--fit", json.dumps(fit)]
    if run.arm == "hard":
        words += ["--samples", "3", "--hard", "true"]
    rounds.main(words)
    trained = sorted(folder.glob("round_*/fit/*/hf"))  # none of a round in which nothing was accepted
    return trained[-1] if trained else weights(place, start, run.seed)


def tested(model: str, folder: Path, split: str, count: int, answer_tokens: int) -> dict[str, Any]:
    """Rates of right completions on rows of a split, exact match of each row and of those that want calls, losses."""
    funreason(
        [
            *("validate", f"--config={ROOT / 'configs/srml.yaml'}", f"--model.init_from={model}"),
            *(f"--data.path=toolbox:{split}:{count}:1", "--data.limit_val=null", "--data.eval_batch_size=1000"),
            *(f"--trainer.default_root_dir={folder}", f"--samples.rows={count}", "--trainer.logger=false"),
            *("--model.generator=lightning_modules.generators.HFGenerator",),
            f"--model.generator.init_args.max_new_tokens={answer_tokens}",
        ]
    )
    logged = {name: values[-1] for name, values in read_metrics(folder).items()}
    with next(folder.glob("*/samples.jsonl")).open(encoding="utf-8") as file:
        samples = sorted(map(json.loads, file), key=lambda row: row["id"])
    matched = [(row["category"], int(row["parts"]["exact_match"])) for row in samples]
    return {
        split: {name.removeprefix("tool/"): logged[name] for name in logged if name.startswith("tool/")},
        f"{split}_rows": [hit for _, hit in matched],
        f"{split}_call_rows": [hit for category, hit in matched if category != "irrelevance"],
        f"{split}_loss": {segment: logged[f"val/loss_{segment}"] for segment in ("cot", "call")},
        f"{split}_length": logged["completion/mean_length"],
    }


@torch.no_grad()
def text_loss(model: str) -> float:
    """Nats a token of general text: what the model has forgotten of it shows as more than the base model's."""
    data = PretrainingDataModule(str(BASE))
    data.setup("fit")
    causal = AutoModelForCausalLM.from_pretrained(model).eval()
    nll, tokens = 0.0, 0
    for index in range(TEXTS):
        document = data.encode(make_document(index, seed=1))
        ids, segments = torch.tensor(document.input_ids), torch.tensor(document.segments)
        targets = ids.where(segments == CALL, -100)[1:]
        nll += cross_entropy(causal(ids[None]).logits[0, :-1], targets, ignore_index=-100, reduction="sum").item()
        tokens += int((targets >= 0).sum())
    return nll / tokens
