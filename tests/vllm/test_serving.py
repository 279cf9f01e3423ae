"""A real server on what was trained: an ordinary OpenAI client gets the thoughts and calls that `ask` prints."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from openai import APIConnectionError, OpenAI

from datamodules.chat.form import ChatForm, frame_of, reads
from datamodules.chat.segments import encode_prompt
from datamodules.chat.serving import served_tokenizer
from datamodules.example import Example
from datamodules.rows import read_raw
from lightning_modules.commands.ask import ask, load_model
from rewards import Call, parse_completion, write_calls

START = 500.0  # seconds that the server may take; half a minute where nothing else runs
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "at": {}}, "required": ["city"]}
TOOLS = [{"name": name, "description": "Weather", "parameters": PARAMETERS} for name in ("get weather", "weather.now")]
ARGUMENTS = {"city": "Oslo", "at": [-1.5, True, None, {"ø": "it's"}]}
REQUESTS = {
    "Weather in Oslo?": ("Oslo, so get weather.", [{"name": "get weather", "arguments": ARGUMENTS}]),
    "Oslo now, twice!": ("Now, so weather.now.", [{"name": "weather.now", "arguments": ARGUMENTS}] * 2),
    "Tell a joke.": ("No tool fits.", []),
}
ROWS = [
    Example(str(number), query, json.dumps(TOOLS), json.dumps(answers), cot)
    for number, (query, (cot, answers)) in enumerate(REQUESTS.items())
]


@pytest.fixture(scope="module", params=["python", "hermes"])
def run(request, teach, small_heads_dir):
    """The run folder of a model that knows the answers by heart, in one form; its tags of a thought are no tokens."""
    return teach(small_heads_dir, ChatForm(answer_form=request.param), ROWS, 100)


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    """A client of the server that `funreason serve` becomes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "lightning_modules", "serve", str(run), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "4", "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0)
    deadline = time.monotonic() + START
    try:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.models.list()
                break
            except APIConnectionError:
                time.sleep(0.5)
        else:
            pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
        yield client
    finally:
        print(log.read_text()[-2000:])  # shown where a test has failed
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def openai_tools():
    return [{"type": "function", "function": tool} for tool in TOOLS]


def streamed(chunks):
    """Thought, content, calls and reason of a stream put together as any client does."""
    thought, content, calls, reason = "", "", {}, None
    for chunk in chunks:
        (choice,) = chunk.choices
        reason = choice.finish_reason or reason
        thought += getattr(choice.delta, "reasoning", None) or ""
        content += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = (name + (call.function.name or ""), arguments + (call.function.arguments or ""))
    return thought, content, [Call(name, json.loads(arguments)) for name, arguments in calls.values()], reason


@pytest.mark.slow
def test_an_openai_client_gets_what_ask_prints(run, client):
    model = client.models.list().data[0].id
    assert model == str(run)
    policy, tokenizer, form = load_model(str(run))
    for query, (cot, answers) in REQUESTS.items():
        (asked,) = ask(policy, tokenizer, form, query, TOOLS)
        assert (asked.cot, asked.error, asked.misfit) == (cot, None, None)
        assert asked.calls == [Call(**answer) for answer in answers]
        request = {
            "model": model,
            "messages": [{"role": "user", "content": query}],
            "tools": openai_tools(),
            "max_tokens": 512,
        }
        answer = client.chat.completions.create(**request)
        (choice,) = answer.choices
        calls = [Call(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls or []]
        assert (choice.message.reasoning, calls) == (asked.cot, asked.calls)
        assert choice.message.content == (None if answers else "[]")
        assert choice.finish_reason == ("tool_calls" if answers else "stop")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
            asked.prompt_tokens,
            asked.completion_tokens,
        )
        thought, content, calls, reason = streamed(client.chat.completions.create(stream=True, **request))
        assert (thought, calls, reason) == (asked.cot, asked.calls, choice.finish_reason)
        assert content.strip() == ("" if answers else "[]")


@pytest.mark.slow
def test_the_server_prompts_as_training_did(run, client):
    _, tokenizer, form = load_model(str(run))
    called = {"name": "weather.now", "arguments": json.dumps(ARGUMENTS)}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Oslo now?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": called}]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "And in Ålesund?"},
    ]
    for messages in (chat[1:2], chat[:4], chat):
        row = read_raw({"messages": messages, "tools": openai_tools()}, unanswered=True).examples[0]
        options = {"max_tokens": 1, "extra_body": {"return_token_ids": True}}
        answer = client.chat.completions.create(model=str(run), messages=messages, tools=openai_tools(), **options)
        assert answer.prompt_token_ids == encode_prompt(tokenizer, row, form)


CALLS = [Call("get weather", ARGUMENTS), Call("weather.now", {"city": "]</tool_call>{"})]
ANSWERS = ["[]", "Hello, I cannot.", "f", "{odd", "[f(", "<tool_call>\n{}", "A <think> tag", ""]


TEMPLATE = (  # with calls of its own: a frame that no parser of vLLM's has
    "{{ tools | tojson if tools else '' }}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{%- for c in m.tool_calls or [] %}{{ '; ' if not loop.first else '<|call|>' }}"
    "{{- '{\"name\": ' + c.function.name | tojson + ', \"parameters\": ' + c.function.arguments | tojson + '}' }}"
    "{%- endfor %}{{ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


@pytest.mark.parametrize("thought", ["Why not?", "  a < b\n\n</thin ", None, "cut"])
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("answer_form", ["python", "json", "hermes", "template"])
def test_our_parsers_read_whole_and_in_pieces_as_the_reward_does(tiny_tokenizer, answer_form, size, thought):
    """Through vLLM's own parser of streams, the text cut anywhere."""
    from vllm.parser.parser_manager import ParserManager

    from lightning_modules.generators import vllm_parsers  # noqa: F401  (registers them)

    form, own = (
        ChatForm("template" if answer_form == "template" else "paper", answer_form),
        copy.deepcopy(tiny_tokenizer),
    )
    own.chat_template = TEMPLATE
    tokenizer, frame = served_tokenizer(own, form), frame_of(form, own)
    parser = ParserManager.get_parser("funreason", "funreason", True, tokenizer=tokenizer)
    request = SimpleNamespace(
        tools=[1], tool_choice="auto", skip_special_tokens=True, include_reasoning=True, messages=[]
    )
    written = [write_calls(calls, frame) for calls in (CALLS[:1], CALLS[1:], CALLS)]
    assert answer_form != "template" or (written[2].startswith("<|call|>") and "; " in written[2])
    for answer in written + ANSWERS:
        text = answer if thought is None else f"<think>{thought}</think>\n\n{answer}"
        text = "<think>Nobody knows what" if thought == "cut" else text
        prompt = tokenizer("Answer in <think></think>.")["input_ids"]
        expected = parse_completion(text, form=reads(form, own), think=thought is not None)
        reasoning, content, calls = parser(tokenizer).parse(text, request, enable_auto_tools=True)
        found = [Call(call.name, json.loads(call.arguments)) for call in calls or []]
        assert found == (expected.calls or [])
        assert (reasoning or "") == ("Nobody knows what" if thought == "cut" else (thought or "").strip())
        assert (content or "") == ("" if found or thought == "cut" else answer)
        stream, pieces = parser(tokenizer), [text[i : i + size] for i in range(0, len(text), size)] or [""]
        deltas = [
            stream.parse_delta(piece, tokenizer(piece)["input_ids"], request, prompt, finished=i == len(pieces) - 1)
            for i, piece in enumerate(pieces)
        ]
        deltas = [delta for delta in deltas if delta is not None]
        assert "".join(delta.reasoning or "" for delta in deltas) == (reasoning or "")
        assert "".join(delta.content or "" for delta in deltas).strip() == (content or "")
        assert [
            Call(call.function.name, json.loads(call.function.arguments)) for d in deltas for call in d.tool_calls
        ] == found


def test_without_tools_calls_stay_text(tiny_tokenizer):
    from vllm.parser.parser_manager import ParserManager

    from lightning_modules.generators import vllm_parsers  # noqa: F401

    parser = ParserManager.get_parser("funreason", None, True, tokenizer=served_tokenizer(tiny_tokenizer, ChatForm()))
    for tools, choice in [([], "none"), ([1], "none")]:
        request = SimpleNamespace(tools=tools, tool_choice=choice, include_reasoning=True, messages=[])
        assert parser(tiny_tokenizer).parse("[f(a=1)]", request, enable_auto_tools=True) == (None, "[f(a=1)]", [])
        delta = parser(tiny_tokenizer).parse_delta("[f(a=1)]", [1], request, [2], finished=True)
        assert delta.content == "[f(a=1)]" and not delta.tool_calls
