"""Reward functions that raise, hang, die or return nonsense: the completion pays, the run goes on, up to a share."""

import math
import os
import time

import pytest

from lightning_modules.rollout.scoring import Rewards, RewardTerm, as_score
from rewards import FunctionCallReward, RewardResult

ROW = ("[]", "[]")  # tools and answers


def length(completion, tools, answers):
    return len(completion)


def moody(completion, tools, answers):
    """What each completion asks for."""
    if completion == "raise":
        raise KeyError("city")
    if completion == "hang":
        time.sleep(60)
    if completion == "loop":
        while True:
            pass
    if completion == "die":
        os._exit(3)
    if completion == "leave":
        raise SystemExit
    return {"none": None, "nan": math.nan, "inf": -math.inf, "text": "1", "true": True}.get(completion, 0.25)


def scores(function, *completions, timeout=10.0, share=1.0):
    rewards = Rewards({"f": RewardTerm(function)}, timeout, share)
    return rewards([(completion, *ROW) for completion in completions])["f"]


def test_every_way_to_fail_costs_that_completion_alone():
    got = scores(moody, "a", "raise", "b", "none", "nan", "inf", "text", "true", "leave", "die", "c")
    assert got == [0.25, None, 0.25, None, None, None, None, 1.0, None, None, 0.25]


@pytest.mark.parametrize("way", ["hang", "loop"])
def test_a_function_that_hangs_is_stopped_and_asked_again(way):
    start = time.perf_counter()
    assert scores(moody, way, "a", timeout=0.3) == [None, 0.25]
    assert time.perf_counter() - start < 20


def test_without_a_time_out_functions_run_in_this_process():
    seen = []
    assert scores(lambda completion, *_: seen.append(completion) or 1, "a", timeout=None) == [1.0]
    assert seen == ["a"]  # which a function in another process could not have filled
    assert scores(lambda completion, *_: seen.append(completion) or 1, "b") == [1.0]
    assert seen == ["a"]


def test_the_strict_reward_runs_in_this_process_and_its_own_errors_count():
    rewards = Rewards({"call": RewardTerm(FunctionCallReward())})
    assert isinstance(rewards.functions["call"], FunctionCallReward)
    inputs = [("<think>none</think>\n\n[]", "[]", "[]")] * 9 + [("x", "[]", "not JSON")]
    assert rewards(inputs)["call"] == [1.0] * 9 + [None]


def test_weights_and_failures_in_the_sum():
    rewards = Rewards(
        {"length": RewardTerm(length, weight=0.5), "moody": RewardTerm(moody, weight=2.0)}, max_error_share=1
    )
    got = rewards([("abcd", *ROW), ("none", *ROW)])
    assert got == {"length": [4.0, 4.0], "moody": [0.25, None]}
    assert rewards.total({"length": 4.0, "moody": 0.25}) == 2.5  # 0.5 * 4 + 2 * 0.25
    assert rewards.total({"length": 4.0, "moody": None}) == 0.0


def test_too_many_failures_stop_the_run_with_the_function_and_an_input():
    completions = ["a", "raise", "a", "raise", "raise", "a", "a", "a"]
    assert scores(moody, *completions, share=0.375).count(None) == 3  # 3 of 8
    with pytest.raises(RuntimeError) as error:
        scores(moody, *completions, share=0.25)
    message = str(error.value)
    assert "\n" not in message
    for words in ("Reward function f failed for 3", "max_reward_errors 0.25", "KeyError", "'city'", "'raise'"):
        assert words in message


def test_values():
    assert as_score(RewardResult(0.5, {"error": 0.0})) == 0.5
    with pytest.raises(ValueError, match="unusable"):
        as_score(RewardResult(0.0, {"error": 1.0}))
    with pytest.raises(TypeError, match="None"):
        as_score(None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"terms": {}}, "at least one"),
        ({"terms": {"mean": RewardTerm(length)}}, "mean"),  # reward/mean/mean beside reward/mean
        ({"terms": {"a/b": RewardTerm(length)}}, "slash"),
        ({"terms": {"a": RewardTerm(length)}, "timeout": 0}, "reward_timeout"),
        ({"terms": {"a": RewardTerm(length)}, "max_error_share": 2}, "max_reward_errors"),
    ],
)
def test_impossible_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Rewards(**options)
