"""The head alone, `linear_logprobs`: time and memory by tokens, and errors against float64, beside full logits.

Command: python -m benchmarks.head; `--quick` takes 1,024 and 4,096 tokens and records nothing without `--record`.
"""

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.record import record
from benchmarks.sides import THREADS, in_process
from lightning_modules.objectives import linear_logprobs


class Shape(NamedTuple):
    """A head, and whether its products are taken under bfloat16 autocast."""

    vocabulary: int
    hidden: int
    bf16: bool

    def __str__(self) -> str:
        return f"{self.vocabulary:,} x {self.hidden} {'bf16' if self.bf16 else 'float32'}"


SHAPES = (Shape(151_936, 256, False), Shape(262_144, 640, True))
CHECKED = 256  # tokens on which errors are measured
LONG = 10  # seconds of a first pass that has to do; else it is not counted
COLUMNS = ("head", "path", "tokens", "forward, s", "backward, s", "peak, GB", "inputs and gradients, GB")
ERRORS = ("head", "path", "log-probability, largest error", "gradient of hidden states", "gradient of the weight")


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities from the logits of all tokens at once, as transformers' loss takes them, [N]."""
    logits = torch.nn.functional.linear(hidden, weight).to(torch.promote_types(weight.dtype, torch.float32))
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def in_blocks(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities by `linear_logprobs`, [N]."""
    return linear_logprobs(hidden=hidden, weight=weight, targets=targets)[0]


PATHS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": in_blocks, "full logits": full_logits}


def make_inputs(shape: Shape, tokens: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, D] and weight [V, D], both of unit logits' deviation and with gradients, and targets [N]."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, shape.hidden, device=device, requires_grad=True)
    weight = (torch.randn(shape.vocabulary, shape.hidden, device=device) / shape.hidden**0.5).requires_grad_()
    return hidden, weight, torch.randint(shape.vocabulary, (tokens,), device=device)


def timed_pass(path: str, shape: Shape, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Seconds of the forward pass and of the backward pass of the mean."""
    for tensor in inputs[:2]:
        tensor.grad = None
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=shape.bf16):
        logprobs = PATHS[path](*inputs)
    middle = time.perf_counter()
    logprobs.mean().backward()
    return middle - start, time.perf_counter() - middle


def timings(path: str, shape: Shape, tokens: int) -> tuple[float, float]:
    """Medians of the seconds of both passes."""
    inputs = make_inputs(shape, tokens)
    passes = [timed_pass(path, shape, inputs)]
    if sum(passes[0]) < LONG:
        passes = [timed_pass(path, shape, inputs) for _ in range(3)]
    forward, backward = (median(column) for column in zip(*passes, strict=True))
    return forward, backward


def errors(path: str, shape: Shape) -> tuple[float, float, float]:
    """Against float64 on the same inputs: largest error of a log-probability, norms of both gradients' errors.

    The norms are relative to those of the gradients.
    """
    inputs = make_inputs(shape, CHECKED)
    with torch.autocast("cpu", torch.bfloat16, enabled=shape.bf16):
        found = PATHS[path](*inputs)
    gradients = torch.autograd.grad(found.mean(), inputs[:2])
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs[:2]]
    exact = full_logits(*exact_inputs, inputs[2])
    exact_gradients = torch.autograd.grad(exact.mean(), exact_inputs)
    relative = [float((g - e).norm() / e.norm()) for g, e in zip(gradients, exact_gradients, strict=True)]
    return float((found.detach() - exact.detach()).abs().max()), *relative


def fits(path: str, shape: Shape, tokens: int) -> bool:
    """Whether memory holds what a path makes: full logits, their softmax and gradients, four times float32."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return path == "ours" or 16 * shape.vocabulary * tokens < 0.6 * memory


def main() -> None:
    """Measure and record both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,024 and 4,096 tokens")
    parser.add_argument("--record", action="store_true", help="record a quick run, too")
    given = parser.parse_args()
    lengths, keep = (1024, 4096) if given.quick else (4096, 16_384, 65_536), not given.quick or given.record
    rows, checked = [], []
    for shape in SHAPES:
        for path in PATHS:
            for tokens in lengths:
                if not fits(path, shape, tokens):
                    rows.append([str(shape), path, f"{tokens:,}", "does not fit", "", "", ""])
                    continue
                (forward, backward), peak = in_process(timings, path, shape, tokens)
                held = 8 * shape.hidden * (shape.vocabulary + tokens) / 1e9
                times = [f"{forward:.2f}", f"{backward:.2f}", f"{peak:.2f}", f"{held:.2f}"]
                rows.append([str(shape), path, f"{tokens:,}", *times])
                print(" | ".join(rows[-1]), flush=True)
            found, _ = in_process(errors, path, shape)
            checked.append([str(shape), path, *(f"{error:.1e}" for error in found)])
    record(
        "Head: time and memory",
        COLUMNS,
        rows,
        f"{THREADS} threads; random hidden states and weights whose logits have deviation 1; log-probabilities alone, "
        f"without entropy. Medians of 3 after one that is not counted; a first pass of more than {LONG} s has to do. "
        "The peak is that of the whole process.",
        keep=keep,
    )
    record(
        "Head: errors against float64",
        ERRORS,
        checked,
        f"On {CHECKED} tokens of the same inputs; under bfloat16 autocast both factors of each product have 8 bits. "
        "Gradients are those of the mean, the norm of the error over the norm of the gradient.",
        keep=keep,
    )


if __name__ == "__main__":
    main()
