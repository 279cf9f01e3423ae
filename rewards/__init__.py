"""Everything that decides whether a function call is right: parser, matcher, reward; standard library only."""

from rewards.bfcl.checker import match_bfcl
from rewards.bfcl.decode import decode_bfcl
from rewards.calls import Call, as_calls, as_tools, category_of, dump_calls
from rewards.forms import FRAMES, CallFrame, write_calls
from rewards.function_call import FunctionCallReward, RewardResult
from rewards.matcher import MatchResult, differences, match_calls
from rewards.parser import ParsedCompletion, parse_calls, parse_completion
from rewards.render import render_calls

__all__ = [
    "FRAMES",
    "Call",
    "CallFrame",
    "FunctionCallReward",
    "MatchResult",
    "ParsedCompletion",
    "RewardResult",
    "as_calls",
    "as_tools",
    "category_of",
    "decode_bfcl",
    "differences",
    "dump_calls",
    "match_bfcl",
    "match_calls",
    "parse_calls",
    "parse_completion",
    "render_calls",
    "write_calls",
]
