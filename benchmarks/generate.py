"""Generation on the CPU: tokens a second beside commit 2e32ac1, greedy under bf16-mixed, and whether they are the same.

Command: python -m benchmarks.generate; `--quick` takes about a minute a side and records nothing without `--record`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.record import record
from benchmarks.sides import ratio

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "2e32ac1"
SIDE = """
import json, sys, time, torch
try:
    from lightning_modules.generators import HFGenerator
    from lightning_modules.policy.model import build_policy
except ImportError:  # names of the earlier commit
    from lightning_modules.models import build_policy
    from lightning_modules.rollout.hf_generator import HFGenerator
folder, file, new = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(file) as opened:
    asked = json.load(opened)
torch.manual_seed(0)
policy = build_policy(folder).eval()
with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
    HFGenerator(max_new_tokens=2, seed=0)(policy, asked["prompts"][:2], stop_ids=asked["stop"])
    start = time.perf_counter()
    rows = HFGenerator(max_new_tokens=new, seed=0)(policy, asked["prompts"], stop_ids=asked["stop"])
    seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "ids": [samples[0].token_ids for samples in rows]}))
"""
SHAPE = {
    "vocab_size": 65536, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "sliding_window": 512,
    "layer_types": [*["sliding_attention"] * 5, "full_attention"], "eos_token_id": 2, "bos_token_id": None,
    "pad_token_id": 0,
}  # fmt: skip


def make_model(folder: Path) -> None:
    """A random model of Gemma 3's kind with the project's own tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from datamodules.chat.tokenizer import load_tokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **SHAPE)).save_pretrained(folder)
    load_tokenizer(str(ROOT / "assets/tiny-base")).save_pretrained(folder)


def make_prompts(model: str, rows: str | None, count: int, longest: int) -> dict:
    """Prompts of the first rows that are no longer, and the ids that end a completion."""
    from transformers import GenerationConfig

    from datamodules.chat.form import resolve_form
    from datamodules.chat.segments import encode_prompt
    from datamodules.chat.tokenizer import load_tokenizer
    from datamodules.rows import to_example
    from datamodules.toolbox.rows import make_corpus
    from lightning_modules.policy.generation_config import stop_ids

    if rows:
        found = [json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    else:
        found = make_corpus("train", 4 * count, 0)
    tokenizer = load_tokenizer(model)
    form = resolve_form(tokenizer)
    prompts = [encode_prompt(tokenizer, to_example(row), form) for row in found[: 20 * count]]
    stop = stop_ids(tokenizer, GenerationConfig.from_pretrained(model))
    return {"prompts": [prompt for prompt in prompts if len(prompt) <= longest][:count], "stop": stop}


def generate(tree: Path, model: str, asked: Path, new: int) -> dict:
    """What one tree generates, in a process of its own, and how long that takes."""
    command = [sys.executable, "-P", "-c", SIDE, model, str(asked), str(new)]
    environment = os.environ | {"PYTHONPATH": str(tree), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, cwd=tree)
    return json.loads(done.stdout.splitlines()[-1])


def by_turns(model: str | None, rows: str | None, count: int, new: int, repeats: int) -> tuple[list[int], list[list]]:
    """Lengths of the prompts, and pairs of what the earlier tree and this one generate."""
    with tempfile.TemporaryDirectory() as scratch:
        before, asked = Path(scratch) / "before", Path(scratch) / "asked.json"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(before), BEFORE], cwd=ROOT, check=True)
        try:
            folder = str(Path(model).resolve() if model else Path(scratch) / "model")
            if not model:
                make_model(Path(folder))
            prompts = make_prompts(folder, rows, count, 420)
            asked.write_text(json.dumps(prompts), encoding="utf-8")
            pairs = [[generate(tree, folder, asked, new) for tree in (before, ROOT)] for _ in range(repeats)]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=True)
    return [len(prompt) for prompt in prompts["prompts"]], pairs


def main() -> None:
    """Run both trees in turn and record their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts and tokens: about a minute a side")
    parser.add_argument("--model", help="Hugging Face folder; a small random model when left out")
    parser.add_argument("--rows", help="JSONL of rows; the shipped corpus when left out")
    parser.add_argument("--repeats", type=int, help="of each tree, by turns (3; 1 with --quick)")
    parser.add_argument("--record", action="store_true", help="record a quick run, too")
    options = parser.parse_args()
    count, new, repeats = (24, 64, 1) if options.quick else (60, 256, 3)
    repeats = options.repeats or repeats
    lengths, pairs = by_turns(options.model, options.rows, count, new, repeats)
    speeds = [[sum(map(len, run["ids"])) / run["seconds"] for run in pair] for pair in pairs]
    faster = ratio(*([pair[tree] for pair in speeds] for tree in (1, 0)))
    then, now = pairs[0][0]["ids"], pairs[0][1]["ids"]
    same = sum(map(list.__eq__, then, now))
    firsts = [next(i for i, (a, b) in enumerate(zip(x, y)) if a != b) for x, y in zip(then, now) if x != y]  # noqa: B905
    name = Path(options.model).name if options.model else "a random model of Gemma 3's kind"
    record(
        f"Generation: {name}, tokens a second",
        ["", "tokens a second", "of those before"],
        [
            [f"commit {BEFORE}", f"{median(then for then, _ in speeds):.1f}", "1"],
            ["now", f"{median(now for _, now in speeds):.1f}", f"{faster.value:.2f}"],
        ],
        f"{len(lengths)} prompts of {sum(lengths) / len(lengths):.0f} tokens, at most {new} new ones, greedy, "
        f"bf16-mixed; medians of each side's runs by turns ({repeats} each), ratio {faster}. "
        f"{same} of {len(now)} completions are the same; the others part after "
        f"{median(firsts) if firsts else 0:.0f} tokens (median).",
        key="generate_gemma" if options.model else "generate",
        ratios={
            "speed_vs_2e32ac1": faster.value,
            "speed_spread": [faster.least, faster.greatest],
            "same_completions": same / len(now),
        },
        keep=not options.quick or options.record,
    )


if __name__ == "__main__":
    main()
