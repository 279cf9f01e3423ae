"""Rows of the real scale of the study, prepared once: to train on, held out, for reinforcement learning, of BFCL."""

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from datamodules.bfcl.package import BFCLPackage, find_package, instructions
from datamodules.bfcl.prompts import spread_over_categories
from datamodules.bfcl.rows import CATEGORIES
from datamodules.encoding import segment_tokens
from datamodules.refinement.cli import main as refine
from datamodules.sft import XLAMSFTDataModule
from datamodules.system.files import atomic_write, write_text
from datamodules.xlam import write_jsonl
from rewards import as_calls, as_tools

ROOT = Path(__file__).resolve().parents[1]
TRAIN, HELD_OUT, RL_ROWS, FCDR, R1 = "train.jsonl", "held_out.jsonl", "rl.jsonl", "fcdr.jsonl", "r1.jsonl"
BFCL, TEXT, FACTS = "bfcl", "text.json", "data.json"
SEED = 17
SIZES = {TRAIN: 2000, HELD_OUT: 200, RL_ROWS: 240}
QUICK = {TRAIN: 16, HELD_OUT: 4, RL_ROWS: 16}
BFCL_ROWS, BFCL_QUICK = 650, 13
HELD_OUT_TOOLS = 0.1  # share of the names of tools that no row to train on offers
LONGEST, LONGEST_R1, LONGEST_RL = 640, 1024, 120  # tokens of a row; of one by R1; of an answer to learn by sampling
PLAIN_TEXT = ROOT / "benchmarks/study_text.json"  # of README, docs and code as they were for the first runs
DATA_OF_BFCL = ("constants/default_prompts.py", "constants/model_config.py", "model_handler/parser")


def prepare(model: str, rows: Path, r1: Path | None, folder: Path, quick: bool) -> None:
    """Write all that runs read but the model, unless it is there.

    Args:
        model: Whose tokens are counted.
        rows: Rows without a chain of thought.
        r1: Rows with one by a reasoning model, for the arm that learns from these.
        folder: Where to.
        quick: Only as many as the smallest whole study takes.
    """
    with atomic_write(folder) as unfinished:
        unfinished.mkdir()
        facts = {"sources": [rows.name, *([r1.name] if r1 else [])], "seed": SEED}
        facts |= write_rows(model, rows, r1, unfinished, QUICK if quick else SIZES)
        facts |= {"system_prompt": instructions(find_package("bfcl_eval"))}
        facts |= {"bfcl_sizes": write_bfcl(unfinished / BFCL, BFCL_QUICK if quick else BFCL_ROWS)}
        shutil.copy(PLAIN_TEXT, unfinished / TEXT)
        files = sorted(file for file in unfinished.rglob("*.json*") if file.is_file())
        facts["hashes"] = {
            str(file.relative_to(unfinished)): _hash(file) for file in files if file.parent == unfinished
        }
        drawn = "".join(
            file.read_text() for file in files if "possible_answer" not in file.parts and BFCL in file.parts
        )
        facts["hashes"][BFCL] = hashlib.sha256(drawn.encode()).hexdigest()[:12]
        write_text(unfinished / FACTS, json.dumps(facts, indent=2) + "\n")


def write_rows(model: str, rows: Path, r1: Path | None, folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Draw the rows of each file and write them; what is to be known of them."""
    scratch = folder / "scratch"
    refine([f"--config={ROOT / 'configs/cot.yaml'}", f"--data.path={rows}", f"--output_dir={scratch / 'cot'}"])
    every = lines(scratch / "cot" / "refined.jsonl")
    tokens = token_counts(model, scratch / "cot" / "refined.jsonl")
    names = sorted({name for row in every for name in offered(row)})
    unseen = {name for name in names if _place(name) < HELD_OUT_TOOLS}
    fits = [row for row, (prompt, answer) in zip(every, tokens, strict=True) if prompt + answer <= LONGEST]
    answers = {row["id"]: answer for row, (_, answer) in zip(every, tokens, strict=True)}
    held_out = [
        row for row in fits if offered(row) and called(row) <= unseen and (called(row) or offered(row) <= unseen)
    ]
    seen = [row for row in fits if not offered(row) & unseen]
    draw = random.Random(SEED)
    draw.shuffle(seen)
    draw.shuffle(held_out)
    train, rest = seen[: sizes[TRAIN]], seen[sizes[TRAIN] :]
    short = [row for row in rest if answers[row["id"]] <= LONGEST_RL]
    drawn = {TRAIN: train, HELD_OUT: held_out[: sizes[HELD_OUT]], RL_ROWS: short[: sizes[RL_ROWS]]}
    write_jsonl(scratch / "drawn.jsonl", train)
    fcdr = scratch / "fcdr"
    refine(
        [f"--config={ROOT / 'configs/refine.yaml'}", f"--data.path={scratch / 'drawn.jsonl'}", f"--output_dir={fcdr}"]
    )
    drawn[FCDR] = lines(fcdr / "refined.jsonl")
    longest = dict.fromkeys(drawn, LONGEST)
    if r1:
        drawn[R1], longest[R1] = of_r1(model, r1, unseen), LONGEST_R1
    for name, chosen in drawn.items():
        write_jsonl(folder / name, chosen)
    report = json.loads((fcdr / "report.json").read_text(encoding="utf-8"))
    shutil.rmtree(scratch)
    return {
        "rows": {name: len(chosen) for name, chosen in drawn.items()},
        "longest": longest,
        "categories": {name: Counter(row.get("category") or "" for row in chosen) for name, chosen in drawn.items()},
        "unseen_tools": len(unseen),
        "eligible": {"train": len(seen), "held_out": len(held_out), "all": len(every)},
        "fcdr": {stage: found["dropped"] for stage, found in report["stages"].items()},
    }


def of_r1(model: str, rows: Path, unseen: set[str]) -> list[dict[str, Any]]:
    """Rows with a chain of thought by R1 that can be trained on and offer no held-out tool."""
    module = XLAMSFTDataModule(model, str(rows), val_fraction=0, max_length=LONGEST_R1, on_bad_row="skip")
    module.setup("fit")
    usable = [module.rows.examples([at])[0] for at in module.train_indices]
    ids = {example.id for example in usable}
    return [row for row in lines(rows) if row["id"] in ids and not offered(row) & unseen]


def token_counts(model: str, rows: Path) -> list[tuple[int, int]]:
    """Tokens of prompt and answer of each row of a file."""
    module = XLAMSFTDataModule(model, str(rows), val_fraction=0, max_length=LONGEST)
    module.setup("fit")
    prompt, cot, call = segment_tokens(module.rows)
    return list(zip(prompt.tolist(), (cot + call).tolist(), strict=True))


def offered(row: dict[str, Any]) -> set[str]:
    """Names of the tools that a row offers."""
    return {tool["name"] for tool in as_tools(row["tools"])}


def called(row: dict[str, Any]) -> set[str]:
    """Names of the tools that a row's answer calls."""
    return {call.name for call in as_calls(row["answers"])}


def write_bfcl(folder: Path, limit: int) -> dict[str, int]:
    """Draw rows of BFCL, as many of each category as can be, and write them as `BFCLDataModule` reads the package.

    Returns:
        How many rows each category has in all.
    """
    package, draw = find_package("bfcl_eval"), random.Random(SEED)
    target = folder / package.folder.name
    (target / "data" / "possible_answer").mkdir(parents=True)
    every = {category: (package.folder / "data" / _file(package, category)) for category in CATEGORIES[package.version]}
    sizes = {category: len(lines(file)) for category, file in every.items()}
    shares = spread_over_categories(sizes, limit)
    for category, file in every.items():
        chosen = sorted(draw.sample(range(sizes[category]), shares[category]))
        for source in (file, file.parent / "possible_answer" / file.name):
            if source.is_file():
                found = source.read_text(encoding="utf-8").splitlines()
                text = "".join(found[at] + "\n" for at in chosen)
                write_text(target / source.relative_to(package.folder), text)
    for name in DATA_OF_BFCL:
        source = package.folder / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target / name, ignore=ignored) if source.is_dir() else shutil.copy(
            source, target / name
        )
    metadata = f"Metadata-Version: 2.1\nName: bfcl-eval\nVersion: {package.release}\n"
    write_text(folder / f"bfcl_eval-{package.release}.dist-info" / "METADATA", metadata)
    return sizes


def lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none of one that is not there."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _file(package: BFCLPackage, category: str) -> str:
    return f"{package.prefix}{category}.json"


def _place(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
