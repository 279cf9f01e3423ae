"""Check of `trainer.precision`: one that would lose what a run learns is refused before weights are loaded."""

SUPPORTED = ("32-true", "bf16-mixed", "bf16-true", "64-true")
LEAST_RATE = 3e-4
"""Learning rate from which AdamW moves bfloat16 weights about as far as it means to.

bfloat16 has 8 significant bits: in [2^e, 2^(e + 1)) its numbers lie 2^(e - 7) apart, and what is added to a weight is
lost below half of that. At |w| = 0.02, the deviation that weights are drawn with, half is 2^-14 = 6e-5, while a step of
AdamW is at most about the learning rate. Its second moments, too, never shrink: 0.999 v rounds to v. Measured over 100
steps from weights N(0, 0.02^2), with gradients that are noise around a mean of 0.3 of its deviation, the share of
AdamW's movement (the projection of what was done on what float32 does) that is left:

    learning rate   1e-6   1e-5   4e-5   1e-4   2e-4   3e-4   1e-3
    share           0.01   0.09   0.35   0.72   0.93   0.98   0.99
"""


def check_precision(precision: str, lora: bool, learning_rate: float | None, flattens: bool = False) -> None:
    """Raise if a precision is not supported, or would lose what the run learns.

    Args:
        precision: As Lightning has it, such as "bf16-mixed".
        lora: Whether adapters learn, and not all weights.
        learning_rate: The peak rate; None where nothing is trained.
        flattens: Whether the strategy lays the weights of a layer in one tensor, as FSDP1 does.

    Raises:
        ValueError: If a precision is none of `SUPPORTED`, if bfloat16 would round away what all weights learn, or if
            its weights and the float32 adapters on top would have to be one tensor.
    """
    if precision not in SUPPORTED:
        raise ValueError(
            f"trainer.precision {precision} is not supported (float16 and less need gradients that are scaled, "
            f"which nothing does here): use bf16-mixed, or another of {', '.join(SUPPORTED)}."
        )
    if precision != "bf16-true":
        return
    if not lora and learning_rate is not None and learning_rate < LEAST_RATE:
        raise ValueError(
            f"trainer.precision bf16-true with model.learning_rate {learning_rate:g} would round away what AdamW adds "
            f"to the weights (all of them learn, and below {LEAST_RATE:g} too little of it is left): use bf16-mixed, "
            "whose weights are float32, or model.lora, whose adapters are."
        )
    if lora and flattens:
        raise ValueError(
            "trainer.precision bf16-true with model.lora does not work with FSDP1, which cannot hold bfloat16 weights "
            "and float32 adapters together: use FSDP2 (configs/trainer/fsdp2.yaml) or bf16-mixed."
        )
