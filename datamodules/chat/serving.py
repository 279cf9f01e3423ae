"""The tokenizer of an exported model, whose chat template renders the prompts that the model was trained on."""

import json
import keyword
import logging
from copy import deepcopy

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import KEPT_IN, ChatForm, frame_of
from datamodules.chat.templates import end_of_turn_id, folded, takes_system, turns_text, unended
from datamodules.sources.tools import BFCL_TYPES, SHOWN_FIRST
from rewards import FRAMES, CallFrame

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
"""A template that takes off the end of the prompt what `templates.turns_text` does.

Without a generation prompt the chat is rendered as ever, outside of any block, so that `{% generation %}` still works.
"""


OURS = "{#- Requests with tools as this model was trained on them. -#}"
BELOW = "{#- What follows is the template of the model that it was trained from. +#}"
_PYTHON = """
{%- macro funreason_calls(calls) %}
    {%- set found = namespace(python=true) %}
    {%- for call in calls %}
        {%- set f = call.function if call.function is defined else call %}
        {%- if f.arguments is string %}{{- raise_exception('give the arguments of a call as an object') }}{%- endif %}
        {%- for part in f.name.split('.') + (f.arguments | list) %}
            {%- if not part.isidentifier() or part in KEYWORDS %}{%- set found.python = false %}{%- endif %}
        {%- endfor %}
    {%- endfor %}
    {%- if found.python %}
        {{- '[' }}
        {%- for call in calls %}
            {%- set f = call.function if call.function is defined else call %}
            {{- (', ' if not loop.first else '') + f.name + '(' }}
            {%- for key, value in f.arguments.items() %}
                {{- (', ' if not loop.first else '') + key + '=' }}
                {%- set value = '%r' | format(value) %}
                {{- value | replace('<think>', '\\\\x3cthink>') | replace('</think>', '\\\\x3c/think>') }}
            {%- endfor %}
            {{- ')' }}
        {%- endfor %}
        {{- ']' }}
    {%- else %}FRAMED{%- endif %}
{%- endmacro %}"""
_FRAMED = """
        {{- HEAD }}
        {%- for call in calls %}
            {%- set f = call.function if call.function is defined else call %}
            {{- (SEPARATOR if not loop.first else '') + '{"name": ' + (f.name | tojson) + ', "' + KEY + '": ' }}
            {%- set arguments = f.arguments if f.arguments is string else f.arguments | tojson %}
            {{- arguments | replace('<think>', '\\\\u003cthink>') | replace('</think>', '\\\\u003c/think>') + '}' }}
        {%- endfor %}
        {{- TAIL }}"""
_GATHERED = """
{%- set funreason = namespace(turns=[], system=none) %}
{%- for turn in messages %}
    {%- set text = turn.content if turn.content is string else '' %}
    {%- if turn.content and turn.content is not string %}
        {%- set text = turn.content | map(attribute='text') | join('\n') %}
    {%- endif %}
    {%- if turn.role in ('system', 'developer') %}
        {%- set text = text | trim %}
        {%- if text %}
            {%- set funreason.system = text if funreason.system is none else funreason.system + '\n\n' + text %}
        {%- endif %}OTHERS
    {%- endif %}
{%- endfor %}"""
_TURNS = _GATHERED.replace(
    "OTHERS",
    """
    {%- else %}
        {%- if turn.role == 'assistant' and '</think>' in text %}
            {%- set text = text.split('</think>')[-1] | trim %}
        {%- endif %}
        {%- if turn.role == 'assistant' and turn.tool_calls %}
            {%- set text = (text + '\n\n' if text else '') + funreason_calls(turn.tool_calls) %}
        {%- endif %}
        {%- set funreason.turns = funreason.turns + [{'role': turn.role, 'content': text}] %}""",
)
_AS_THEY_ARE = _GATHERED.replace(
    "OTHERS",
    """
    {%- else %}
        {%- set funreason.turns = funreason.turns + [turn] %}""",
)
_TOOLS = """
    {%- set funreason.tools = [] %}
    {%- for tool in tools %}
        {%- set f = tool.function if tool.function is defined else tool %}
        {%- set funreason.items = [] %}
        {%- for key in FIRST + (f | list | reject('in', FIRST) | list) %}
            {%- set value = NOTHING if key == 'parameters' and not f[key] else f[key] %}
            {%- if value is defined and value is not none %}
                {%- set funreason.items = funreason.items + [(key, value)] %}
            {%- endif %}
        {%- endfor %}
        {%- set funreason.tools = funreason.tools + [dict(funreason.items)] %}
    {%- endfor %}""".replace("FIRST", repr(list(SHOWN_FIRST)))
_SAID = """
    {%- set text = INSTRUCTIONS + funreason.tools | WRITTEN %}
    {%- set funreason.system = text if funreason.system is none else text + '\n\n' + funreason.system %}
    {%- set tools = none %}"""
_GIVEN = """
    {%- set funreason.wrapped = [] %}
    {%- for tool in funreason.tools %}
        {%- set funreason.wrapped = funreason.wrapped + [{'type': 'function', 'function': tool}] %}
    {%- endfor %}
    {%- set tools = funreason.wrapped %}"""
_WRITTEN = {
    "json": "tojson(separators=(',', ':'))",
    "bfcl": "string" + "".join(f" | replace({old!r}, {new!r})" for old, new in BFCL_TYPES.items()) + r" ~ '\n\n'",
}
"""How Jinja writes a list of tools, by the form of tools: filters, and what is put behind."""
_NO_PARAMETERS = "{'type': 'object', 'properties': {}, 'required': []}"
"""What a tool without parameters has in a prompt that shows schemas."""
_TOLD = """
    {%- set funreason.system = INSTRUCTIONS + ('' if funreason.system is none else '\n\n' + funreason.system) %}"""
_SYSTEM = """
    {%- set messages = funreason.turns %}
    {%- if funreason.system is not none %}
        {%- set messages = [{'role': 'system', 'content': funreason.system}] + messages %}
    {%- endif %}"""
_FOLDED = """
    {%- set funreason.folded = [] %}
    {%- for turn in funreason.turns %}
        {%- if turn.role == 'user' and funreason.system is not none %}
            {%- set turn = {'role': 'user', 'content': funreason.system + '\n\n' + turn.content} %}
            {%- set funreason.system = none %}
        {%- endif %}
        {%- set funreason.folded = funreason.folded + [turn] %}
    {%- endfor %}
    {%- set messages = funreason.folded %}"""


def template_of_requests(form: ChatForm, frame: CallFrame | None, folds: bool) -> str:
    """The beginning of a chat template that puts requests with `tools=` as `segments.messages` does.

    It takes OpenAI's messages (`tool_calls`, `tool` turns, parts of text) and tools, makes the turns of a training
    prompt of them, and leaves these to the template below it. Where that takes no system message, those of requests
    without tools are put where `templates.folded` puts them.

    Args:
        form: The form of the training.
        frame: That of its calls; see `form.frame_of`.
        folds: Whether the model's own template takes no system message.
    """
    placed, instructions = _FOLDED if folds else _SYSTEM, _text(form.instructions)
    if form.prompt == "template":
        told = _TOLD.replace("INSTRUCTIONS", instructions) if form.instructions else ""
        given = _TOOLS.replace("NOTHING", _NO_PARAMETERS) + _GIVEN + told + placed
        without_tools = "\n{%- else %}" + placed if folds else ""
        return OURS + _AS_THEY_ARE + "\n{%- if tools %}" + given + without_tools + "\n{%- endif %}" + BELOW
    shown = _TOOLS.replace("NOTHING", "f[key]" if form.tool_form == "json" else _NO_PARAMETERS)
    shown += _SAID.replace("WRITTEN", _WRITTEN[form.tool_form]).replace("INSTRUCTIONS", instructions)
    without_tools = "\n{%- elif messages and messages[0].role == 'system' %}" + _TURNS + placed if folds else ""
    return (
        OURS + _macro(frame) + "\n{%- if tools %}" + _TURNS + shown + placed + without_tools + "\n{%- endif %}" + BELOW
    )


def _macro(frame: CallFrame | None) -> str:
    """The macro that writes calls, in the Python form where there is no frame."""
    framed = FRAMES["json"] if frame is None else frame
    written = _FRAMED.replace("HEAD", _text(framed.head)).replace("TAIL", _text(framed.tail))
    written = written.replace("SEPARATOR", _text(framed.separator)).replace("KEY", _text(framed.key))
    if frame is None:
        return _PYTHON.replace("FRAMED", written).replace("KEYWORDS", repr(tuple(keyword.kwlist)))
    return "\n{%- macro funreason_calls(calls) %}" + written + "\n{%- endmacro %}"


def own_template(template: str) -> str:
    """The template of the model itself, without the beginning that an export has put before it."""
    return template.partition(BELOW)[2] if template.startswith(OURS) else template


def same_prompts(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Whether two tokenizers have the same ids, and templates that put a request alike."""
    if one.name_or_path == other.name_or_path:
        return True
    return turns_text(one, CHATS[0]) == turns_text(other, CHATS[0]) and one.get_vocab() == other.get_vocab()


def _text(text: str) -> str:
    """A text as Jinja reads it."""
    return json.dumps(text, ensure_ascii=True).replace("{", "\\u007b") if text else "''"


def served_tokenizer(tokenizer: PreTrainedTokenizerFast, form: ChatForm | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer to export: with `tools=` its template renders the prompts of the training, token for token.

    Its EOS ends a turn, its template leaves `<think>` to the model, and its settings hold the form.

    Args:
        tokenizer: The tokenizer of the training.
        form: How requests were put in it; None leaves the template as it is but for `<think>`.

    Returns:
        A copy, or it itself where nothing is to be changed. Templates that print the EOS token keep the one they have.

    Raises:
        ValueError: The template refuses these turns.
    """
    served = _without_opened_think(tokenizer)
    if form is None:
        return served
    served = deepcopy(served) if served is tokenizer else served
    served.init_kwargs[KEPT_IN] = form.recorded()
    beginning = template_of_requests(form, frame_of(form, tokenizer), not takes_system(tokenizer))
    served.chat_template = beginning + served.chat_template
    return served


def _without_opened_think(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
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
        served.chat_template = WITHOUT_THINK.format(template=unended(given))
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


def _render(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, str]], prompt: bool) -> str:
    turns = turns if takes_system(tokenizer) else folded(turns)
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))
