from datamodules import Example
from lightning_modules.play.sampled import SampledAnswer, ShownToken
from lightning_modules.play.shading import answer_html, legend_html, tokens_html
from lightning_modules.rollout.rollout import Rollout
from rewards import FunctionCallReward

HOSTILE = '<img src=x onerror="alert(1)">&\x1b'
ESCAPED = "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;\\x1b"
TOOLS = '[{"name": "f", "parameters": {}}]'


def answer(text, tokens=(), finish_reason="stop", **facts):
    example = Example("1", "q", TOOLS, '[{"name": "f", "arguments": {}}]')
    result = FunctionCallReward()(text, TOOLS, example.answers)
    rollout = Rollout(example, text, result.parsed, result, 5, 9, finish_reason)
    return SampledAnswer(rollout, list(tokens), **facts)


def test_tokens_are_coloured_by_segment_and_shaded_by_entropy():
    page = tokens_html([ShownToken("a", 1, 0.0, True), ShownToken("\n", 2, 1.5, False), ShownToken("", 2, 9.0, False)])
    # Shades: 0.05 + 0.75 * 0 / 1.5 and 0.05 + 0.75 * 1.5 / 1.5; a token without text of its own is not shown.
    assert 'class="fr-t fr-cot" style="background:rgba(245, 158, 11,0.05)' in page
    assert 'class="fr-t fr-call" style="background:rgba(14, 165, 233,0.80)' in page
    assert 'title="0.000 nats, in the mean of the CoT">a<' in page and 'title="1.500 nats">' in page
    assert page.count('class="fr-t ') == 2 and "↵</span>\n" in page


def test_foreign_text_is_escaped():
    assert f">{ESCAPED}<" in tokens_html([ShownToken(HOSTILE, 1, 0.1, False)])
    facts = {"cot_entropy": 0.1, "finish_reason": "stop"}
    page = answer_html(
        answer("<think>a</think>[f()]", [ShownToken(HOSTILE, 2, 0.1, False)], misfit=HOSTILE, **facts), 1
    )
    assert "<img" not in page and page.count(ESCAPED) == 2


def test_what_an_answer_is_worth_is_said():
    text = "<think>a</think>[f()]"
    facts = {"misfit": None, "cot_entropy": 0.5, "finish_reason": "length"}
    compared = {"advantage": 0.3, "bonus": 0.15, "raw_bonus": 0.2, "cap": 0.15, "capped": True, "shaped": 0.45}
    page = answer_html(answer(text, **facts, **compared), 2)
    for part in (
        "#2",
        "reward 1",
        "A <b>+0.300",
        "E <b>0.500",
        "<b>0.150</b> (capped) = min(&lambda;E 0.200, |A|/&alpha; 0.150)",
    ):
        assert part in page
    assert "A + bonus <b>+0.450" in page and "0 tokens, cut" in page and "read as calls that fit the tools" in page
    alone = answer_html(answer(text, **facts), 1)
    assert "reward" not in alone and "E <b>0.500</b> nats" in alone
    assert "not read as calls: the text does not start with" in answer_html(answer("no", **facts), 1)
    wrong = answer_html(answer("<think>a</think>[f(b=1)]", **facts, **compared), 1)
    assert "read, but not the reference: [f(b=1)]" in wrong and "reward 0" in wrong


def test_the_legend_names_both_segments():
    assert "chain of thought" in legend_html() and "call" in legend_html()
