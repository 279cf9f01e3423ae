"""The exported chat template against the prompts of training, on what thinking models ship."""

import copy

import pytest

from datamodules.chat.serving import served_tokenizer
from datamodules.chat.templates import turns_text

# How the generation prompts of QwQ, of GLM and of Qwen3 (where it does not think) go on after the role.
ROLE = "{% if add_generation_prompt %}<|im_start|>assistant\n"
OPENED = {
    "QwQ": "{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}\n",
    "literal": ROLE + "<think>\n\n{% endif %}",
    "expression": ROLE + "{{ '</think>' if quick else '<think>' }}{% endif %}",
    "empty block": ROLE + "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
}
MESSAGES = (
    "{%- macro turn(m) -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endmacro %}\n"
    "{%- set ns = namespace(seen=0) -%}\n"
    "{% for m in messages %}{% set ns.seen = ns.seen + 1 %}{% if not m.content %}{% continue %}{% endif %}\n"
    "  {{- turn(m) }}{% endfor %}\n"
)
SYSTEM, USER = {"role": "system", "content": "Tools."}, {"role": "user", "content": "Weather?"}
REPLY = {"role": "assistant", "content": "<think>why</think>\n\n[f()]"}
OTHERS = [
    [SYSTEM, USER],
    [USER],
    [SYSTEM, USER, REPLY, {"role": "tool", "content": "12"}, {"role": "user", "content": "<think>"}],
    [SYSTEM, {"role": "user", "content": " <think>\n"}],
]


def rendered(tokenizer, turns, **options):
    return tokenizer.apply_chat_template(turns, tokenize=False, **options)


@pytest.mark.parametrize("messages", [None, MESSAGES])
@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_a_template_that_opens_think_is_exported_so_that_it_does_not(tiny_tokenizer, opened, messages):
    thinking = copy.deepcopy(tiny_tokenizer)
    before = tiny_tokenizer.chat_template.removesuffix(ROLE + "{% endif %}")
    assert before != tiny_tokenizer.chat_template
    thinking.chat_template = (messages or before) + opened
    served = served_tokenizer(thinking)
    for turns in OTHERS:
        prompt = rendered(served, turns, add_generation_prompt=True)
        assert prompt == turns_text(thinking, turns) and prompt.endswith("<|im_start|>assistant\n")
        assert rendered(thinking, turns, add_generation_prompt=True).startswith(prompt + "<think>")
        assert rendered(served, turns) == rendered(thinking, turns)
    assert served_tokenizer(served) is served  # what is exported again stays as it is


def test_masks_of_generation_blocks_still_work(tiny_tokenizer):
    thinking = copy.deepcopy(tiny_tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
        "{% endfor %}" + OPENED["QwQ"]
    )
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    masks = [t.apply_chat_template([USER, REPLY], **options) for t in (thinking, served_tokenizer(thinking))]
    assert sum(masks[0]["assistant_masks"]) > 3 and masks[0] == masks[1]


def test_other_templates_are_exported_byte_for_byte(tiny_tokenizer, tmp_path):
    assert served_tokenizer(tiny_tokenizer) is tiny_tokenizer
    served_tokenizer(tiny_tokenizer).save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_bytes() == tiny_tokenizer.chat_template.encode()


def test_a_template_that_cannot_be_rewritten_is_named(tiny_tokenizer, caplog):
    odd = copy.deepcopy(tiny_tokenizer)
    odd.name_or_path = "odd-model"
    odd.chat_template = "{% extends layout %}"
    # Whatever template it is given, it renders this one.
    odd.get_chat_template = lambda *_: tiny_tokenizer.chat_template.replace("assistant\n", "assistant\n<think>\n")
    served = served_tokenizer(odd)
    assert served.chat_template == "{% extends layout %}"
    assert "odd-model opens <think> in a way that could not be undone" in caplog.text


def test_eos_ends_the_turn_unless_the_template_prints_it(tiny_tokenizer):
    base = copy.deepcopy(tiny_tokenizer)
    base.eos_token = "<|endoftext|>"
    served = served_tokenizer(base)
    assert (served.eos_token, base.eos_token) == ("<|im_end|>", "<|endoftext|>")
    assert served.chat_template == base.chat_template
    base.chat_template = "{{ eos_token }}" + base.chat_template
    assert served_tokenizer(base).eos_token == "<|endoftext|>"
