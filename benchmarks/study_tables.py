"""The study as Markdown: a table of claims, one of arms, and BFCL by category beside FunctionGemma's published row."""

from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.system.escaping import markdown_table

FUNCTION_GEMMA = {
    "simple": 61.6,
    "multiple": 63.5,
    "parallel": 39.0,
    "parallel_multiple": 29.5,
    "live_simple": 36.2,
    "live_multiple": 25.7,
    "live_parallel": 22.9,
    "live_parallel_multiple": 20.8,
    "live_relevance": 61.1,
    "irrelevance": 73.7,
}
"""Percent by category of BFCL, as its model card has them (270M parameters, tuned by Google from the same base)."""
SCALES = ("real", "small")
HELD = {True: "yes", False: "no, the opposite", "undecided": "undecided"}
HEAD = """# The papers' claims, tried

`python -m benchmarks.study_claims` makes this page of the runs in `benchmarks/study_runs.jsonl`; all numbers are in
`benchmarks/study.json`. A claim is a difference of arms that is above 0 if the claim is right. It holds if the whole
95 % interval of the mean lies above 0, the opposite holds if the whole interval lies below, and otherwise it is
undecided. Verdicts are not corrected for the number of claims. "New seed" is where 95 % of further seeds should land
on the same rows to test on. Intervals are bootstraps over seeds and rows, widened to Student's over the seeds and the
normal one over the rows together where that is wider. The one run of the base model counts as a constant. The share of
an arm with one seed has Wilson's interval over the rows, which says nothing of other seeds; so has a share of which all
seeds together have fewer than 5 hits, or misses.
The interval of a loss or a curve is over seeds alone, on the one text, the rows or the prompts that there are.

In simulations with the variances of these runs, intervals over seeds and rows held the true mean in 96 to 100 of 100
cases (a bootstrap alone in 85 to 100 where there are three seeds). A seed that is left out of a claim lands where the
others predict it in 95 of 100 cases.

**Real**: Gemma 3 270M with LoRA of rank 16, trained on 2,000 real rows in 250 steps of 8 at 3e-4. Tested on 200
held-out rows and on 650 rows of BFCL v3. What a held-out row calls, no training row offers; what else it offers, some
may. Arms that end in `_own` are trained under this project's system text, and asked under it on held-out rows ("by
our text"). The others are trained and asked under the leaderboard's ("by BFCL's text"), those that end in `_bare`
without its last line. BFCL's rows are always asked under the leaderboard's. `srml_0.7_60` and `srml_0.7_60_bare` stop
after 60 steps. A held-out row is right if all calls match exactly, a row of BFCL by BFCL's rules; where no tool fits,
calling none is right. "Call rows" are those that want calls: of BFCL all but the two categories of irrelevance, for
which alone a model that never calls gets 18.5 % of all rows. Forgetting is measured on plain text, documents and code
of this repository as they were for the first runs; `srml_0.7_60_bare` was measured on a later state of them, so that
its loss there does not compare with the others'. Reinforcement starts from `srml_0.7` and takes 25 steps of 8 prompts
x 8 completions at 1e-4; `grpo_11_bare` and `egpo_11_bare` were stopped by the clock in the 11th to 13th, count by the
first 11, and were not tested.

**A fault of the `_bare` arms.** The official prompt has a blank line after the list of tools. Training prompts had
none, up to commit 3bd6b58, so that these arms met it on BFCL alone. Held-out rows they were asked as they had been
trained. What it does: of the first 20 drawn rows of `simple`, asked of the `srml_0.7_bare` of seed 0 that `egpo_bare`
starts from, 3 answers did not end within 128 tokens, and others had a blank line after the calls, too; asked without
that line, all ended. On all 650 rows between 5 and 8 % of the answers of plain SFT do not end within 256 tokens, 12 to
32 % of those of SRML at 0.7, 73 % of those with a learnable alpha. Trained with the line, one seed so far (0, on two
CPU cores; those without it on a GPU): `srml_0.7` leaves 4 % of its answers on BFCL unended, where the three seeds of
`srml_0.7_bare` left 32, 12 and 29. It gets 77 of the 530 rows that want calls right, where they got 34, 69 and 39 (49
gained and 6 lost beside the 34 of the same seed), 56 of the 120 rows of irrelevance (82, 53 and 92) and 90 of the 200
held-out rows (102, 97 and 103).

`sft`, of the same seed and cores, gets 77 of the 530, too (71, 84 and 83 without the line): 12 that `srml_0.7` gets
wrong, which gets 12 others right. It leaves 4 % unended (5, 8 and 6) and gets 89 of the held-out rows (91, 84 and 84),
38 of irrelevance (42, 37 and 62; `srml_0.7` 56), and a loss on plain text 0.015 nats below that of `srml_0.7`. So the
missing line cost SRML its calls on BFCL, and plain SFT hardly any. With it the two differ in that SRML calls less where
nothing fits (24 of these rows that `sft` gets wrong, against 6), and SRML's lead on held-out rows is not to be seen.
That is one seed of each, and no claim.

`srml_0.7_60` beside `srml_0.7_60_bare`: 16 % unended against 30, 58 of the 530 against 43 (20 gained, 5 lost), 35 of
irrelevance against 51. What `_bare` arms get on BFCL has this fault in it, more of it in some than in others, and the
claims on it wait for three seeds of the arms without.

One difference is left: BFCL puts a sentence on Python 3 behind the description of every function, training does not.
`srml_0.7` of seed 0, asked without it on the 181 rows of `simple`, `multiple` and `live_simple`, gets 45 of them right
as with it (3 gained and 3 lost; 29 of the answers differ): no sign that training with it would gain anything.

`egpo_bare` and `grpo_bare` (one seed each, on two CPU cores) take all 25 steps, from a `srml_0.7_bare` of seed 0 that
was trained anew there and gets 49 % of held-out rows. `rate_0_bare` is that start, sampled for the same prompts with
the same random numbers at a learning rate of 0: what a step earns depends more on how hard its 8 prompts are than on
what was learnt. EGPO earns 0.038 more than its start in the mean of the 25 steps (95 %: 0.018 to 0.058) and 0.100
more in the last five, GRPO 0.026 (-0.002 to 0.053) and 0.016. In those five EGPO has the higher KL (0.028 and 0.021),
more entropy in chains of thought (0.074 and 0.066, their start 0.177) and the longer completions (58.6 and 55.5
tokens, their start 64.5), as the papers have it. That gain is one of sampling at a temperature of 1: answered
greedily, EGPO gets 44 % of held-out rows and GRPO 43. Of BFCL they get 13.5 and 16.3 % of all rows, 9.6 and 14.7 % of
the calls that are wanted, 20 and 8 % of irrelevance; the `srml_0.7_bare` of seed 0 that was trained on a GPU gets
17.8, 6.4 and 60 %. It leaves 32 % of its answers unended after 256 tokens, they 3 and 4 %. So both end their answers
and call more, also where nothing fits; 33 of the 240 rows that they learn from want no call. Their loss on plain text
is 0.34 and 0.32 nats above that model's. Claims about them wait for three seeds.

`srml_fcdr_bare` (one seed, on two CPU cores) takes its 250 steps on the 589 of the 2,000 rows that FCDR keeps, at an
alpha of 0.5. Its judge is made of rules that go by the words of the shipped corpus. They reject 1,316 of these rows
for the query alone, and half of what they keep are the 296 rows where no tool fits. The model declines accordingly:
that is no test of FCDR, which wants a model as its judge, but of what the rules are worth on rows of others.
`srml_0.5_bare`, of one seed on the same cores, takes as many steps on all 2,000 at the same alpha. It makes 13.0 % of
BFCL's calls right, `srml_fcdr_bare` 2.8; it gets 47 % of irrelevance right, `srml_fcdr_bare` 88. Of all rows of BFCL
the two get 19.4 and 18.5 %, of held-out ones 44 and 38. `srml_learnable_bare` (one seed, likewise) ends with a weight
of 0.68 on chains of thought and gets 50 % of held-out rows, as SRML at 0.7 does. Claims about them wait for three
seeds.

**Small**: the tiny base model (1.15 million parameters), 50 steps of 8 at 2e-3 on 400 rows of the shipped corpus,
drawn anew by each seed. Half of them are about functions with made-up names, but for `corrupted`, `clean`, `refined`
and what starts from it. Reinforcement takes 48 steps of 4 prompts x 8 completions at 3e-4, about the corpus' own
functions, and starts from `practised`, a model with a bad habit that has trained for 150 steps on 1,200 rows. Tested
on 120 held-out rows (the same functions, other values and wordings) and 60 about functions that no training row has.
No arm was tuned against another. The rate of reinforcement was raised for all arms from 1e-4, at which those of one
seed did not differ. Its start and its steps were chosen on seeds that are not counted here, because only one
completion in eight from `start` was right.

SRML against plain SFT is a small step here. Plain SFT averages over tokens, so its chains of thought weigh as much as
their share of the tokens: the column `train.weight cot`, of the last 20 steps. That share is 0.92 in the papers' rows.
Where it is near 0.7, SFT and SRML at 0.7 weigh chains of thought alike. They differ in that SRML averages within rows
first, so that a short answer weighs as much as a long one (`srml_0.7_token` does without). `long` rows, whose chains
of thought first go through every tool and each parameter, are nearer to the papers'.

Most contrasts were written down before the runs that they count. Four by our text were chosen with the results in
sight: the three with an alpha of 0.5, and that over the base model (at an alpha of 0.7 the mean loss on held-out calls
is above that of plain SFT). Those on BFCL's call rows had been written for runs of 60 steps, and those of the first 11
steps for 25. That of EGPO's reward and its start's, `rate_0`, was written when the curves of both scales had been seen
to rise by less than prompts differ; it counts the last fifth of the steps, as all claims on curves do.

Self-refinement takes 25 steps a round at the same rate, on the samples alone that the round has accepted. `hard` is
that on the 44 to 50 rows that FCDR rejected for their calls. A round passes over its 3 to 29 samples seven times and
more, after which the model has forgotten the rest. `refined_50`, beside it, takes as many steps on all refined rows.

The defects that FCDR removes from `corrupted` rows are planted, and its judge of rules knows them: `refined` stands
for a judge that makes no mistake.
"""
NOT_ALIKE = """FunctionGemma was tuned on Google's own data and is scored on all rows of a category with its own chat
form. Ours saw only the study's rows, answers the leaderboard's official prompt, and is scored on the rows
that were drawn. Arms that end in `_own` were trained under this project's system text and write no call under the
leaderboard's, which they had not seen. Irrelevance counts whatever is no call as right.
"""


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """A line for each claim."""
    rows = [
        [
            entry["claim"],
            entry["paper"],
            f"{entry['ours']:+.3g} {span(entry['interval'])}",
            span(entry["prediction"]),
            f"{entry['seeds']} x {entry['rows']}",
            HELD[entry["held"]],
        ]
        for entry in claims
    ]
    return markdown_table(["claim", "paper", "ours, 95 %", "new seed", "seeds x rows", "holds"], rows) + "\n"


def arms_table(arms: Sequence[Mapping[str, Any]], scale: str) -> str:
    """A line for each arm of a scale, a column for each metric."""
    chosen = [entry for entry in arms if entry["scale"] == scale]
    measures = list(dict.fromkeys(entry["measure"] for entry in chosen))
    cells = {(entry["arm"], entry["measure"]): f"{entry['mean']:.3g} {span(entry['interval'])}" for entry in chosen}
    seeds = {entry["arm"]: str(entry["seeds"]) for entry in chosen}
    rows = [[arm, seeds[arm], *(cells.get((arm, measure), "") for measure in measures)] for arm in seeds]
    return markdown_table(["arm", "seeds", *(measure.replace("_", " ") for measure in measures)], rows) + "\n"


def bfcl_table(bfcl: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Percent right by category, a line for each arm, and FunctionGemma's.

    Args:
        bfcl: Of each arm and category the mean and both ends of its interval, as shares.
    """
    rows = [
        [arm, *(f"{100 * of[c][0]:.1f} ({100 * of[c][1]:.0f} to {100 * of[c][2]:.0f})" for c in FUNCTION_GEMMA)]
        for arm, of in bfcl.items()
    ]
    published = ["FunctionGemma", *(f"{value:.1f}" for value in FUNCTION_GEMMA.values())]
    return markdown_table(["arm", *(name.replace("_", " ") for name in FUNCTION_GEMMA)], [*rows, published]) + "\n"


def span(ends: Sequence[float] | None) -> str:
    """An interval; nothing of None."""
    return f"({ends[0]:+.3g} to {ends[1]:+.3g})" if ends else ""


def page(study: Mapping[str, Any]) -> str:
    """The page of a study; a table that has no line is left out."""
    parts = [HEAD]
    for scale in SCALES:
        if claims := [entry for entry in study["claims"] if entry["scale"] == scale]:
            chance = f"By chance alone at most about {0.05 * len(claims):.1f} of these {len(claims)}"
            parts += [f"## Claims, {scale} scale\n", claims_table(claims), f"{chance} would look decided on average.\n"]
    if study["bfcl"]:
        parts += ["## BFCL v3, percent right\n", NOT_ALIKE, bfcl_table(study["bfcl"])]
    for scale in SCALES:
        if any(entry["scale"] == scale for entry in study["arms"]):
            parts += [f"## Arms, {scale} scale\n", arms_table(study["arms"], scale)]
    return "\n".join(parts)
