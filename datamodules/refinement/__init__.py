"""Refinement of data: FunReason's five stages, FunRL's preparation, and the judges that both ask."""

from datamodules.refinement.cot import write_cot
from datamodules.refinement.judging import Judge, Outcome, Panel, Question, Verdict
from datamodules.refinement.openai_judge import OpenAIJudge
from datamodules.refinement.preparation import funrl
from datamodules.refinement.rule_judge import RuleJudge
from datamodules.refinement.stages import fcdr
from datamodules.refinement.vllm_judge import VLLMJudge

__all__ = [
    "Judge",
    "OpenAIJudge",
    "Outcome",
    "Panel",
    "Question",
    "RuleJudge",
    "VLLMJudge",
    "Verdict",
    "fcdr",
    "funrl",
    "write_cot",
]
