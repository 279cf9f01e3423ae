"""Claims of both papers, each as a contrast of the study's arms that is above 0 if the claim is right.

FunReason is arXiv 2505.20192 (v1; v3 under the name BalanceSFT), FunRL and EGPO are arXiv 2508.05118 (v1 and v4). The
weights were chosen before the runs that count, where an arm of SRML stands for all with an alpha of 0.7, which v3
starts from; `study_page.md` says which were not.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A claim of the papers.

    Attributes:
        claim: In a sentence.
        paper: Which paper, and what it reports.
        scale: "real" or "small".
        measure: Where in the metrics of a run its value is; see `study_claims.values_of`.
        weights: Of the arms.
    """

    claim: str
    paper: str
    scale: str
    measure: str
    weights: Mapping[str, float]


MEASURES = {
    "real": (
        *("bfcl_rows", "bfcl_call_rows", "heldout_rows", "heldout_loss.call", "text_loss", "train.weight_cot"),
        *("curves.kl", "curves.cot_entropy"),
    ),
    "small": (
        *("heldout_rows", "heldout_call_rows", "unseen_rows", "unseen_call_rows", "text_loss", "train.weight_cot"),
        *("curves.reward", "curves.kl", "curves.cot_entropy"),
    ),
}
"""What is said of every arm itself."""

BEST_ALPHA = {"srml_0.5": 1 / 2, "srml_0.7": 1 / 2, "srml_0.1": -1 / 3, "srml_0.3": -1 / 3, "srml_0.9": -1 / 3}
NEAR_ALPHA = {"srml_0.5": 1 / 2, "srml_0.7": 1 / 2, "srml_0.3": -1 / 2, "srml_0.9": -1 / 2}
LONGER = {"srml_0.7_long": 1, "srml_0.7": -1, "sft_long": -1, "sft": 1}
FORGETTING = "FunReason v1: HumanEval 0.866 before, 0.470 after SFT, 0.841 after SRML"
EGPO = "EGPO v4: single-turn 82.20 by GRPO, 84.92 by EGPO (Qwen3-4B)"
CURVES = "EGPO v4, figures 5 and 6: EGPO's curve lies above GRPO's"
BINARY = "EGPO v4, table 3: 84.92 with the binary reward, 84.36 with 0.5 more for the format (Qwen3-4B)"
SRML = "FunReason v1: overall 81.94 by SFT, 83.66 by SRML (Qwen2.5-Coder-7B)"
UNTUNED = "FunReason v1: overall 76.93 by Qwen2.5-Coder-7B-Instruct, 83.66 by SRML (Qwen2.5-Coder-7B)"
SSB = "BalanceSFT v3, table 5: single-turn 81.73 by SFT, 82.20 with the learnable alpha (Qwen2.5-Coder-7B)"
REFINED = "FunReason v1: overall 78.70 before, 81.94 by SFT on rows refined by FCDR (Qwen2.5-Coder-7B)"
REWARD = "EGPO v4: mean reward 0.83 at step 70, 0.88 in the end; FunRL v1: from 0.60 to 0.88"


def of_both_scales(scale: str, measure: str) -> tuple[Claim, ...]:
    """Claims that are tried on either scale, in the exact match that it has."""

    def claim(text: str, paper: str, better: str, worse: str, of: str = measure) -> Claim:
        return Claim(text, paper, scale, of, {better: 1, worse: -1})

    return (
        claim("SRML with a learnable alpha gets more rows right than plain SFT", SSB, "srml_learnable", "sft"),
        claim("EGPO gets more rows right than GRPO", EGPO, "egpo", "grpo"),
        claim("EGPO moves further from its reference than GRPO: higher KL", CURVES, "egpo", "grpo", "curves.kl"),
        claim("EGPO keeps more entropy in chains of thought", CURVES, "egpo", "grpo", "curves.cot_entropy"),
        claim("EGPO writes longer completions than GRPO", CURVES, "egpo", "grpo", "curves.completion_length"),
        claim("The binary reward is better than one with a format bonus", BINARY, "grpo", "grpo_format"),
        Claim("EGPO's mean reward rises", REWARD, scale, "curves.reward:rise", {"egpo": 1}),
        claim("EGPO earns more than its start for the same prompts", REWARD, "egpo", "rate_0", "curves.reward"),
    )


NOT_SFT = {"sft_own": -1}
OWN_07, OWN_ALPHA = {"srml_0.7_own": 1, **NOT_SFT}, {"srml_0.7_own": 1, "srml_0.5_own": -1}
OWN_BASE, OWN_LOSS = {"srml_0.7_own": 1, "base": -1}, {"sft_own": 1, "srml_0.5_own": -1}
OWN_TEXT = {"sft_own": 1, "srml_0.7_own": -1}
BARE = "_bare"
"""Ends the names of real arms that were trained, up to commit 3bd6b58, without the blank line that ends BFCL's text."""
BEGUN = {f"egpo_11{BARE}": 1, f"grpo_11{BARE}": -1}


def by_bfcl_text(words: str, suffix: str) -> tuple[Claim, ...]:
    """Claims about SRML (alpha 0.7) on real rows that end in these words, of arms whose names end in the suffix."""
    srml, sft = f"srml_0.7{suffix}", f"sft{suffix}"
    over_sft, over_base = {srml: 1, sft: -1}, {srml: 1, "base": -1}
    sides = (
        ("gets more rows right than plain SFT", SRML, "bfcl_rows", over_sft),
        ("gets more rows right than the base model", UNTUNED, "bfcl_rows", over_base),
        ("makes more of BFCL's calls right than plain SFT", SRML, "bfcl_call_rows", over_sft),
        ("makes more of BFCL's calls right than the base model", UNTUNED, "bfcl_call_rows", over_base),
        ("gets more held-out rows right than plain SFT", SRML, "heldout_rows", over_sft),
        ("forgets less than plain SFT: lower loss on plain text", FORGETTING, "text_loss", {sft: 1, srml: -1}),
    )
    return tuple(
        Claim(f"SRML (alpha 0.7) {what}, {words}", paper, "real", of, weights) for what, paper, of, weights in sides
    )


CLAIMS = (
    *of_both_scales("real", "bfcl_rows"),
    Claim(
        "Rows refined by FCDR are better to train on", REFINED, "real", "bfcl_rows", {"srml_fcdr": 1, "srml_0.5": -1}
    ),
    Claim(
        "Natural chains of thought are better to train on than a template's",
        "FunReason v1: overall 76.91 by a template, 78.70 by natural ones (Qwen2.5-Coder-7B)",
        "real",
        "bfcl_rows",
        {"srml_r1": 1, "srml_0.5": -1},
    ),
    *(
        Claim(f"{what}, by our text", paper, "real", metric, weights)
        for what, paper, metric, weights in (
            ("SRML (alpha 0.7) gets more held-out rows right than plain SFT", SRML, "heldout_rows", OWN_07),
            (
                "SRML (alpha 0.5) gets more held-out rows right than plain SFT",
                SRML,
                "heldout_rows",
                {"srml_0.5_own": 1, **NOT_SFT},
            ),
            ("Alpha of 0.7 gets more held-out rows right than 0.5", SRML, "heldout_rows", OWN_ALPHA),
            ("SRML (alpha 0.7) gets more held-out rows right than the base model", UNTUNED, "heldout_rows", OWN_BASE),
            ("SRML (alpha 0.5) has a lower loss on held-out calls than plain SFT", SRML, "heldout_loss.call", OWN_LOSS),
            (
                "SRML (alpha 0.7) forgets less than plain SFT: lower loss on plain text",
                FORGETTING,
                "text_loss",
                OWN_TEXT,
            ),
        )
    ),
    *by_bfcl_text("by BFCL's text without its last line", BARE),
    *by_bfcl_text("by BFCL's text", ""),
    *(
        Claim(f"{what}, in the first 11 steps", paper, "real", f"curves.{curve}", weights)
        for what, paper, curve, weights in (
            ("EGPO moves further from its reference than GRPO: higher KL", CURVES, "kl", BEGUN),
            ("EGPO keeps more entropy in chains of thought", CURVES, "cot_entropy", BEGUN),
            ("EGPO writes longer completions than GRPO", CURVES, "completion_length", BEGUN),
            ("EGPO's mean reward rises", REWARD, "reward:rise", {f"egpo_11{BARE}": 1}),
        )
    ),
    Claim(
        "Reinforcement after SRML gets more rows right than SRML",
        EGPO,
        "real",
        "bfcl_rows",
        {"egpo": 1, "srml_0.7": -1},
    ),
    Claim(
        "SRML (alpha 0.7) gets more rows right than plain SFT",
        SRML,
        "small",
        "heldout_rows",
        {"srml_0.7": 1, "sft": -1},
    ),
    Claim(
        "SRML (alpha 0.7) forgets less than plain SFT: lower loss on plain text",
        FORGETTING,
        "small",
        "text_loss",
        {"sft": 1, "srml_0.7": -1},
    ),
    *of_both_scales("small", "heldout_rows"),
    Claim(
        "Alpha of 0.5 and 0.7 is better than 0.1, 0.3 and 0.9, on average",
        "FunReason v1, figure 4b: best at 0.5 to 0.7",
        "small",
        "heldout_rows",
        BEST_ALPHA,
    ),
    Claim(
        "Alpha of 0.5 and 0.7 is better than 0.3 and 0.9, on average",
        "FunReason v1, figure 4b: best at 0.5 to 0.7",
        "small",
        "heldout_rows",
        NEAR_ALPHA,
    ),
    Claim(
        "SRML (alpha 0.7) gets more rows right than plain SFT where chains of thought are long",
        SRML,
        "small",
        "heldout_rows",
        {"srml_0.7_long": 1, "sft_long": -1},
    ),
    Claim(
        "Long chains of thought cost SRML less than plain SFT",
        "FunReason v1: segments are averaged apart, so that length no longer matters",
        "small",
        "heldout_rows",
        LONGER,
    ),
    Claim(
        "Rows refined by FCDR are better than corrupted ones",
        REFINED,
        "small",
        "heldout_rows",
        {"refined": 1, "corrupted": -1},
    ),
    Claim(
        "One round of self-refinement gets more rows right",
        "FunReason v1: its model's own refined samples are trained on in rounds",
        "small",
        "heldout_rows",
        {"self_refine_1": 1, "start": -1},
    ),
    Claim(
        "A round of self-refinement adds more than as many steps on the first rows",
        "FunReason v1: its model's own refined samples are trained on in rounds",
        "small",
        "heldout_rows",
        {"self_refine_1": 1, "start_25": -1},
    ),
    Claim(
        "A second round of self-refinement adds more",
        "FunReason v1, the figure of its training: two rounds and more",
        "small",
        "heldout_rows",
        {"self_refine_2": 1, "self_refine_1": -1},
    ),
    Claim(
        "Re-sampling of hard rows adds more than as many steps on the refined rows",
        "BalanceSFT v3, figure 4c: multi-turn 38.60 before, 47.00 after five rounds",
        "small",
        "heldout_rows",
        {"hard": 1, "refined_50": -1},
    ),
    Claim("EGPO gets more rows right than its start", EGPO, "small", "heldout_rows", {"egpo": 1, "practised": -1}),
    Claim(
        "Code-like pre-training helps more than prose of the same calls",
        "FunRL v1: its gains are largest on code-pretrained models",
        "small",
        "heldout_rows",
        {"after_code": 1, "after_prose": -1},
    ),
    Claim(
        "EGPO's lambda of 0.4 is better than 0.1 and 1.6",
        "EGPO v4: lambda is 0.4",
        "small",
        "heldout_rows",
        {"egpo": 1, "egpo_lambda_0.1": -1 / 2, "egpo_lambda_1.6": -1 / 2},
    ),
    Claim(
        "EGPO's clip divisor of 2 is better than 1.25 and 4, with a lambda of 1.6, where it binds",
        "EGPO v4: the divisor is 2",
        "small",
        "heldout_rows",
        {"egpo_lambda_1.6": 1, "egpo_1.6_divisor_1.25": -1 / 2, "egpo_1.6_divisor_4": -1 / 2},
    ),
)
