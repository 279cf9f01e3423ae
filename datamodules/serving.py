"""The tokenizer of an exported model: whoever renders a chat with it gets the prompt that the model was trained on."""

import logging
import re
from copy import deepcopy

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from datamodules.chat import end_of_turn_id, turns_text

log = logging.getLogger(__name__)

CHATS = [
    [{"role": "system", "content": "system"}, {"role": "user", "content": "one"}],
    [
        {"role": "system", "content": "system"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>why</think>\n\n[]"},
        {"role": "user", "content": "two"},
    ],
]
"""Chats that a template is tried on."""

WITHOUT_THINK = """{{% if add_generation_prompt +%}}{{% set opened +%}}{template}{{%+ endset %}}\
{{%- set prompt = opened.rstrip() %}}\
{{%- set block = prompt[:-8].rstrip() if prompt.endswith('</think>') else '' %}}\
{{%- if prompt.endswith('<think>') %}}{{{{- prompt[:-7] }}}}\
{{%- elif block.endswith('<think>') %}}{{{{- block[:-7] }}}}\
{{%- else %}}{{{{- opened }}}}{{%- endif %}}\
{{%- else +%}}{template}{{%+ endif %}}"""
"""A template that takes off the end of the prompt what `chat.turns_text` does.

Without a generation prompt the chat is rendered as ever, outside of any block, so that `{% generation %}` still works.
"""


def served_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer to export: its EOS ends a turn, its template leaves `<think>` to the model, as in training.

    Args:
        tokenizer: The tokenizer of the training.

    Returns:
        It itself where both hold already, else a copy. Templates that print the EOS token keep the one they have.

    Raises:
        ValueError: The template refuses a system message.
    """
    end, eos = end_of_turn_id(tokenizer), tokenizer.eos_token
    wanted = [turns_text(tokenizer, chat) for chat in CHATS]
    plain = [_render(tokenizer, chat, prompt) for chat in CHATS for prompt in (False, True)]
    opens = plain[1::2] != wanted
    if not opens and tokenizer.eos_token_id == end:
        return tokenizer
    served = deepcopy(tokenizer)
    served.eos_token = tokenizer.convert_ids_to_tokens(end)
    if plain != [_render(served, chat, prompt) for chat in CHATS for prompt in (False, True)]:
        served.eos_token = eos
    if opens:
        given = tokenizer.chat_template
        served.chat_template = (
            {name: _without_think(text) for name, text in given.items()}
            if isinstance(given, dict)
            else _without_think(given)
        )
        try:
            right = [_render(served, chat, True) for chat in CHATS] == wanted
        except TemplateError:
            right = False
        if not right:
            served.chat_template = given
            log.warning(
                "The chat template of %s opens <think> in a way that could not be undone: the exported model was "
                "trained without, so serve it with a template that does not.",
                tokenizer.name_or_path,
            )
    return served


def _without_think(template: str) -> str:
    return WITHOUT_THINK.format(
        template=re.sub(r"(\r\n|\n|\r)\Z", "", template)
    )  # jinja drops one line feed at the end


def _render(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))
