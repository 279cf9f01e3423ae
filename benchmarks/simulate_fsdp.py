"""Peak memory and traffic of a GPU under FSDP2, simulated on one CPU, and the estimate that a run prints beside it.

`--check` holds the simulation of a small model against what torch's allocator hands out in a real run.

Commands: python -m benchmarks.simulate_fsdp, python -m benchmarks.simulate_fsdp --check [--device cuda]
"""

import argparse
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from benchmarks.record import record
from benchmarks.sharded_step import MICRO_BATCHES, Case, StepCost, measure, simulate
from lightning_modules.callbacks.memory import Plan, estimate

GIB = 2**30
LAYOUTS = ((8, 8), (64, 64), (64, 8), (512, 512), (512, 8))  # GPUs, of which so many share one copy of the weights
DEPTHS = (4, 8)  # layers that are run: the full depth would take too long, and with fewer there are none in between
COLUMNS = ("Qwen2.5", "step", "GPUs", "share a copy", "peak, GiB", "in phase", "estimate at start, GiB", "ratio")
COLUMNS += ("all-gather, GiB", "reduce-scatter, GiB", "all-reduce, GiB")
CHECKED = ("step", "device", "allocator's peak, MiB", "simulated, MiB", "estimate at start, MiB")
CHECKED += ("simulated : real", "estimate : real")


def deeper(case: Case, depths: tuple[int, int] = DEPTHS) -> StepCost:
    """Memory and traffic at full depth, extrapolated linearly from two smaller depths, phase by phase."""
    low, high = (simulate(replace(case, layers=depth)) for depth in depths)
    share = (case.config.num_hidden_layers - depths[0]) / (depths[1] - depths[0])

    def line(a: dict[Any, float], b: dict[Any, float]) -> dict[Any, float]:
        return {key: a[key] + share * (b[key] - a[key]) for key in a}

    counts = line({"trained": low.trained, "frozen": low.frozen}, {"trained": high.trained, "frozen": high.frozen})
    return StepCost(line(low.peaks, high.peaks), line(low.moved, high.moved), **counts)


def planned(case: Case, cost: StepCost) -> Plan:
    """The case as a `Plan`, from which a run estimates its memory."""
    return Plan(
        config=case.config,
        trained=round(cost.trained),
        frozen=round(cost.frozen),
        precision="bf16-mixed",
        rows=case.rows,
        length=case.length,
        scored=case.rows * case.length // 2,
        checkpointing=True,
        fsdp=True,
        shards=case.shards,
        hybrid=case.shards < case.gpus,
        reference=case.objective == "EGPO",
        cuda=case.shape != "small",
    )


def cases() -> list[Case]:
    """Every shape, objective and layout; adapters on 8 GPUs only."""
    found = []
    for shape in ("7B", "32B", "72B"):
        for objective, length in (("SRML", 4096), ("EGPO", 16384), ("EGPO, LoRA", 16384)):
            layouts = LAYOUTS[:1] if "LoRA" in objective else LAYOUTS
            found += [Case(objective, shape, gpus, shards, length=length) for gpus, shards in layouts]
    return found


def traffic(moved: dict[Any, float], *names: str) -> str:
    """GiB of some collectives, and the size of their group."""
    found = Counter()
    for (name, size), volume in moved.items():
        if name in names and volume > GIB / 100:
            found[size] += volume
    return ", ".join(f"{volume / GIB:.1f} among {size}" for size, volume in found.items()) or "0"


def simulate_all() -> None:
    """Simulate every case and record the table."""
    rows = []
    for case in cases():
        cost = deeper(case)
        guess = estimate(planned(case, cost)).peak
        row = [case.shape, case.objective, f"{case.gpus}", f"{case.shards}", f"{cost.peak / GIB:.1f}"]
        row += [max(cost.peaks, key=cost.peaks.__getitem__), f"{guess / GIB:.1f}", f"{guess / cost.peak:.2f}"]
        row += [traffic(cost.moved, "allgather_base"), traffic(cost.moved, "reduce_scatter_base")]
        rows.append([*row, traffic(cost.moved, "allreduce")])
        print(" | ".join(rows[-1]), flush=True)
    seven = [Case("SRML", "7B", 8, 8), Case("EGPO", "7B", 64, 64, length=16384)]
    ratios = [deeper(case).peak / simulate(case).peak for case in seven]
    record(
        "FSDP2: memory and traffic of a GPU, simulated",
        COLUMNS,
        rows,
        "Simulated, not run on a GPU: fake tensors and a fake process group, the project's own model, losses and "
        f"sharding. A step is {MICRO_BATCHES} micro-batches on each GPU, of 2 rows of 4,096 tokens (SRML) or 16,384 "
        "(EGPO, whose two scoring passes come first), half of them targets; bf16-mixed with float32 weights, AdamW, "
        "gradient checkpointing, gradients reduced after every micro-batch; full fine-tuning with a frozen reference, "
        "or adapters of rank 16. The peak is what tensors hold: fragments, CUDA's context, NCCL's buffers and rollouts "
        "come on top. Attention is the CPU's kernel under a mask of positions. Traffic is what one GPU receives, "
        f"counted from the collectives that were called. {DEPTHS[0]} and {DEPTHS[1]} layers were run and continued in "
        "a straight line to the depth of the model, phase by phase; against runs of all 28 layers of the 7B shape that "
        f"gives {ratios[0]:.3f} (SRML on 8 GPUs) and {ratios[1]:.3f} (EGPO on 64). `estimate at start` is what "
        "`RunSummary` prints.",
    )


def check(device: torch.device) -> None:
    """Compare simulation and estimate of a small model with a real run, and record them."""
    rows = []
    for objective in ("SRML", "EGPO"):
        case = Case(objective, "small", length=256)
        cost, real = simulate(case, as_on_gpu=device.type == "cuda"), measure(case, device)
        guess = estimate(planned(case, cost)).peak
        row = [f"{value / 2**20:.1f}" for value in (real, cost.peak, guess)]
        rows.append([objective, device.type, *row, f"{cost.peak / real:.3f}", f"{guess / real:.3f}"])
    record(
        "FSDP2: the simulation against a real run",
        CHECKED,
        rows,
        "One process, FSDP2 over a group of one, a model of 4 layers of width 128 and 4,096 ids, 2 rows of 256 tokens "
        "a micro-batch. The real peak is the sum of what torch's allocator reports to its profiler (on a GPU, "
        "`torch.cuda.max_memory_allocated`; `--check --device cuda` measures it).",
    )


def main() -> None:
    """Simulate every case, or check the simulation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate_fsdp", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only hold it against a small real run")
    parser.add_argument("--device", default="cpu", help="of the real run")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    if options.check:
        check(torch.device(options.device))
    else:
        simulate_all()


if __name__ == "__main__":
    main()
