"""Scores of BFCL answers: accuracies by category, and the columns of the leaderboard and of the papers.

The official arithmetic in the official order, so that equal counts give equal metrics to the last bit.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torchmetrics import Metric

from datamodules.bfcl.package import BFCLPackage, decoder
from datamodules.bfcl.rows import AST, CATEGORIES, LIVE_AST, SIMPLE, BFCLRow, language_of
from rewards import MatchResult, match_bfcl

SUMMARIES = ("simple_ast", "non_live_ast", "non_live", "live_ast", "live", "irrelevance_detection", "mean")
"""Scores of several categories together."""


def match_answer(package: BFCLPackage, row: BFCLRow, text: str) -> MatchResult:
    """Check the text of an answer as the official scorer does."""
    language = language_of(row.category)
    calls, error = decoder(package, language)(text)
    verdict = match_bfcl(calls, row.possible_answers, row.functions, row.category, language)
    return verdict if verdict.matched or error is None else MatchResult(False, error)


class Score(NamedTuple):
    """An accuracy.

    Attributes:
        accuracy: From 0 to 1; what was not evaluated counts as wrong, as it does officially.
        count: Answers it is made of, those that are missing included.
        known: Whether all that it is made of was evaluated.
    """

    accuracy: float
    count: int
    known: bool = True


def unweighted(scores: Sequence[Score]) -> Score:
    """Mean of the accuracies of categories."""
    total = _added(score.accuracy for score in scores)
    return Score(total / len(scores), sum(score.count for score in scores), all(score.known for score in scores))


def weighted(scores: Sequence[Score]) -> Score:
    """Accuracy over the answers of all categories."""
    count = sum(score.count for score in scores)
    total = _added(score.accuracy * score.count for score in scores)
    return Score(total / count, count, all(score.known for score in scores))


def _added(values: Iterable[float]) -> float:
    """A plain sum; that of Python compensates for rounding from 3.12 on, and the official one does not."""
    return reduce(operator.add, values)


def summarize(scores: Mapping[str, Score], version: int) -> dict[str, Score]:
    """The columns of the leaderboard that single turns decide, and the mean that the papers call overall.

    BFCL v4 took irrelevance and relevance out of "Non-Live overall" and "Live"; the papers report v3.

    Args:
        scores: One of every category of that version.
        version: Of BFCL.

    Returns:
        Scores by the names of `SUMMARIES`.
    """
    simple = unweighted([scores[category] for category in SIMPLE[version]])
    ast = [simple, *(scores[category] for category in AST)]
    live_ast = [scores[category] for category in LIVE_AST]
    irrelevance, relevance = [scores["irrelevance"], scores["live_irrelevance"]], scores["live_relevance"]
    live = weighted([*live_ast, irrelevance[1], relevance] if version == 3 else live_ast)
    return {
        "simple_ast": simple,
        "non_live_ast": unweighted(ast),
        "non_live": unweighted([*ast, irrelevance[0]] if version == 3 else ast),
        "live_ast": weighted(live_ast),
        "live": live,
        "irrelevance_detection": unweighted(irrelevance),
        "mean": unweighted([unweighted(ast), live]),
    }


class BFCLAccuracy(Metric):
    """Share of right answers by category, and the columns made of them.

    The state is counts, so that the metrics do not depend on how answers fall on batches and ranks.

    Args:
        version: Of BFCL: 3 or 4.
        sizes: How many answers a complete evaluation of each category has: the weight with which a category that is
            not evaluated takes part in the official means.
    """

    full_state_update = False

    def __init__(self, version: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.version = version
        self.categories = CATEGORIES[version]
        self.sizes = dict(sizes)
        for name in ("right", "total"):
            self.add_state(name, torch.zeros(len(self.categories), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, category: str, right: bool) -> None:
        """Add one answer."""
        at = self.categories.index(category)
        self.right[at] += int(right)
        self.total[at] += 1

    def compute(self) -> dict[str, Score]:
        """Scores of all categories, then those of `summarize`."""
        scores = {}
        for category, right, total in zip(self.categories, self.right.tolist(), self.total.tolist(), strict=True):
            missing = Score(0.0, self.sizes[category], known=False)
            scores[category] = Score(right / total, total) if total else missing
        return scores | summarize(scores, self.version)
