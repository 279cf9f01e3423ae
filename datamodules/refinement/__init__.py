"""Refinement of data: FunReason's five stages, FunRL's preparation, and the judges that both ask."""

from datamodules.refinement.judging import Judge, Outcome, Panel, Question, Verdict
from datamodules.refinement.rule_judge import RuleJudge
from datamodules.refinement.stages import fcdr

__all__ = ["Judge", "Outcome", "Panel", "Question", "RuleJudge", "Verdict", "fcdr"]
