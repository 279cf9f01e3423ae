"""Rows of every known form, small and made up, and what each is read as."""

import json
import re

import datasets
import pytest

from datamodules.example import BadRow, Example
from datamodules.refinement.schema import find_misfit
from datamodules.rows import read_raw, to_example
from datamodules.sources.openai import openai_row
from datamodules.sources.tools import openai_tool
from datamodules.xlam import read_examples
from rewards import Call

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
NOW = {"name": "now", "description": "Tell the time.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = [{"type": "function", "function": tool} for tool in (WEATHER, NOW)]
KIND = {"role": "system", "content": "Be kind."}
ASK = {"role": "user", "content": "Weather in Oslo?"}
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo"}}
TIME = {"name": "now", "arguments": {}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
TEXT = "[get_weather(city='Oslo')]"


def said(content=None, **keys):
    return {"role": "assistant", "content": content, **keys}


def chat(*messages, tools=WRAPPED, **columns):
    return {"messages": list(messages), "tools": tools, **columns}


def read(row):
    example = to_example(row)
    return json.loads(example.answers), example.cot, example.response


@pytest.mark.parametrize(
    "message",
    [
        said(tool_calls=[CALL]),
        {"role": "assistant", "tool_calls": [CALL]},  # no content at all
        said("", tool_calls=[{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}, "index": 0}]),
        said(tool_calls=[{"name": "get_weather", "arguments": '{"city": "Oslo"}'}]),
        said(tool_calls=json.dumps([CALL])),
        said(function_call={"name": "get_weather", "arguments": '{"city": "Oslo"}'}),
        said(function_calls='get_weather(city="Oslo")'),  # Olmo's
        said(function_calls='[get_weather(city="Oslo")]'),
        said(tool_calls=[json.dumps(CALL)]),
        said({"name": "get_weather", "arguments": {"city": "Oslo"}}),
        said([{"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Oslo"}}]),
        said([{"type": "tool_call", "value": json.dumps(OSLO)}]),
        said([{"type": "text", "text": TEXT}]),
        said(TEXT, tool_calls=None, function_call=None, refusal=None, audio=None),
        said([{"toolUse": {"toolUseId": "t", "name": "get_weather", "input": {"city": "Oslo"}}}]),  # Bedrock's
        said('{"city": "Oslo"}', channel="commentary", recipient="functions.get_weather", content_type="json"),
        said(tool_calls=[CALL], citations=[{"start": 0, "end": 1}]),  # Cohere's
        {"role": "tool_call", "content": json.dumps(OSLO)},
        {"role": "function_call", "content": json.dumps(OSLO)},
        {"from": "gpt", "value": TEXT},
        {"role": "model", "content": TEXT},
    ],
)
def test_ways_to_write_a_call(message):
    assert read(chat(ASK, message)) == ([OSLO], "", "")


AI_CALL = {"name": "get_weather", "args": {"city": "Oslo"}, "id": "t", "type": "tool_call"}
TOOL_USE = {"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Oslo"}}


@pytest.mark.parametrize(
    "message",
    [
        said(function_call=CALL["function"], tool_calls=[CALL]),  # of proxies that serve old clients and new ones
        {"type": "ai", "content": [TOOL_USE], "tool_calls": [AI_CALL], "invalid_tool_calls": []},
        {
            "type": "ai",
            "content": "",
            "additional_kwargs": {"tool_calls": [CALL], "refusal": None},
            "tool_calls": [AI_CALL],
            "response_metadata": {"model_name": "m"},
        },
        {"type": "ai", "data": {"type": "ai", "content": "", "tool_calls": [AI_CALL], "additional_kwargs": {}}},
    ],
)
def test_calls_in_two_places_of_a_message_are_there_once(message):
    assert read(chat({"type": "human", "content": ASK["content"]}, message)) == ([OSLO], "", "")


def test_calls_in_two_places_that_differ_are_refused():
    other = {"name": "get_weather", "arguments": {"city": "Bergen"}}
    with pytest.raises(BadRow, match="turn 2: there are calls in two places, and they differ"):
        to_example(chat(ASK, said(function_call=other, tool_calls=[CALL])))
    with pytest.raises(BadRow, match="turn 2 has the key 'audio', which is not known"):
        to_example(chat(ASK, said("ok", additional_kwargs={"audio": "x"})))


@pytest.mark.parametrize("arguments", ["", " ", None, "{}", {}, "missing"])
def test_calls_without_arguments(arguments):
    function = {"name": "now", "arguments": arguments}
    if arguments == "missing":
        del function["arguments"]
    assert read(chat(ASK, said(tool_calls=[{"type": "function", "function": function}]))) == ([TIME], "", "")


@pytest.mark.parametrize(
    "turns",
    [
        [said(reasoning_content="Oslo.", tool_calls=[CALL])],
        [said("", reasoning="Oslo.", tool_calls=[CALL])],
        [said(tool_plan="Oslo.", tool_calls=[CALL])],  # Cohere's
        [
            said(
                [{"type": "thinking", "thinking": [{"type": "text", "text": "Oslo."}]}], tool_calls=[CALL], prefix=False
            )
        ],
        [said("", thinking="Oslo.", tool_calls=[CALL])],
        [said([{"reasoningContent": {"reasoningText": {"text": "Oslo.", "signature": "s"}}}], tool_calls=[CALL])],
        [said("Oslo.", channel="analysis"), said(channel="commentary", tool_calls=[CALL])],
        [said("<think>\nOslo.\n</think>\n\n", tool_calls=[CALL])],
        [said([{"type": "thinking", "thinking": "Oslo."}, {"type": "text", "text": TEXT}])],
        [said("<think>Oslo.</think>"), said(tool_calls=[CALL])],
        [{"role": "think", "content": "Oslo."}, {"role": "tool_call", "content": json.dumps(OSLO)}],
        [said(f"Oslo.\n</think>\n\n{TEXT}")],
        [said("Oslo.", tool_calls=[CALL])],  # words before the call
        [said("Oslo."), said(tool_calls=[CALL])],
        # One thought that servers give in two places is there once.
        [said("", reasoning="Oslo.", reasoning_content="Oslo.\n", tool_calls=[CALL])],
        [said("<think>\nOslo.\n</think>", reasoning_content="Oslo.", tool_calls=[CALL])],
        [said("Oslo.", reasoning_content="Oslo.", tool_calls=[CALL])],
        [said(reasoning="Oslo.", reasoning_details=[{"type": "reasoning.text", "text": "Oslo."}], tool_calls=[CALL])],
        [said(thinking_blocks=[{"type": "thinking", "thinking": "Oslo.", "signature": "s"}], tool_calls=[CALL])],
    ],
)
def test_ways_to_write_a_chain_of_thought(turns):
    assert read(chat(ASK, *turns)) == ([OSLO], "Oslo.", "")


def test_thought_and_words_are_both_kept():
    row = chat(ASK, said("Let me look.", reasoning_content="Oslo.", tool_calls=[CALL]))
    assert read(row) == ([OSLO], "Oslo.\n\nLet me look.", "")
    assert read_raw(row).notes["repair/words before the calls read as chain of thought"] == 1


@pytest.mark.parametrize(
    "tools",
    [
        WRAPPED,
        [WEATHER, NOW],
        json.dumps(WRAPPED),
        repr(WRAPPED),
        [json.dumps(tool) for tool in WRAPPED],
        [{"type": "function", "function": json.dumps(tool)} for tool in (WEATHER, NOW)],
        {"tools": [WEATHER, NOW], "nextCursor": None},  # of an MCP server
        {"functions": [WEATHER, NOW]},
        {"get_weather": {k: v for k, v in WEATHER.items() if k != "name"}, "now": NOW},
        [
            {"name": tool["name"], "description": tool["description"], "input_schema": tool["parameters"]}
            for tool in (WEATHER, NOW)
        ],
        [{"type": "function", **tool} for tool in (WEATHER, NOW)],
        [{"type": "custom", "cache_control": {"type": "ephemeral"}, **tool} for tool in (WEATHER, NOW)],
        [{"functionDeclarations": [WEATHER]}, {"function_declarations": [NOW]}],
        [  # Bedrock's
            {"toolSpec": {k: v for k, v in tool.items() if k != "parameters"} | {"inputSchema": {"json": schema}}}
            for tool, schema in ((WEATHER, WEATHER["parameters"]), (NOW, NOW["parameters"]))
        ],
        [{"name": NOW["name"], "description": NOW["description"], "parametersJsonSchema": NOW["parameters"]}, WEATHER][
            ::-1
        ],
    ],
)
def test_ways_to_offer_tools(tools):
    assert json.loads(to_example(chat(ASK, said(TEXT), tools=tools)).tools) == [WEATHER, NOW]


TEMPLATED = {"custom_instructions": "", "enable_thinking": False, "python_tools": [], "xml_tools": []}


@pytest.mark.parametrize(
    "columns",
    [
        {"toolConfig": {"tools": WRAPPED, "toolChoice": {"auto": {}}}},  # Bedrock's
        {"metadata": json.dumps({"tools": WRAPPED})},  # Nemotron's
        {"metadata": {"tools": WRAPPED}},
        {"chat_template_kwargs": {"tools": WRAPPED}},
        {"chat_template_kwargs": TEMPLATED | {"xml_tools": ["\n".join(map(json.dumps, WRAPPED))]}},  # SmolTalk2's
        {"chat_template_kwargs": TEMPLATED | {"xml_tools": [f"You may use:\n<tools>{WRAPPED!r}</tools>"]}},
        {"chat_template_kwargs": TEMPLATED | {"python_tools": [WEATHER, NOW]}},
        {"optional_params": {"tools": WRAPPED, "temperature": 0}},  # LiteLLM's
        {"extra": {"invocation_params": {"tools": WRAPPED}}},  # LangSmith's
    ],
)
def test_columns_that_hold_tools_among_other_things(columns):
    reading = read_raw({"messages": [ASK, said(TEXT)]} | columns)
    assert json.loads(reading.examples[0].tools) == [WEATHER, NOW]
    assert reading.examples[0].history == "[]"
    assert not [note for note in reading.notes if note.startswith("unused/")]
    own = read_raw(chat(ASK, said("ok"), tools=[NOW]) | {"metadata": {"tools": ["wind"], "split": "a"}})
    assert (json.loads(own.examples[0].tools), own.notes["unused/metadata"]) == ([NOW], 1)


def test_names_of_tools_are_no_tools():
    with pytest.raises(BadRow, match="neither a tools column nor a JSON list of tools"):
        to_example({"messages": [ASK, said("ok")], "metadata": {"tools": ["get_weather", "now"]}})


def test_a_request_in_json_is_no_log():
    asked = json.dumps({"messages": "three", "city": "Oslo"})
    example = to_example({"input": asked, "output": TEXT, "tools": WRAPPED})
    assert (example.query, json.loads(example.answers)) == (asked, [OSLO])


@pytest.mark.parametrize("tools", [["def now(): ..."], ["You may use the tools <tools>[{'name': 'now', </tools>"]])
def test_tools_for_a_chat_template_that_cannot_be_read_are_not_taken_for_none(tools):
    with pytest.raises(BadRow, match="neither a tools column nor a JSON list of tools"):
        to_example({"messages": [ASK, said("ok")], "chat_template_kwargs": TEMPLATED | {"xml_tools": tools}})


NONE_SAID = "You are a helpful assistant, with no access to external functions."


def test_rows_that_say_that_no_tool_is_on_offer():
    """SmolTalk2's and Glaive's, also where they were made chats of."""
    row = {"messages": [ASK, said("I cannot know.")]}
    given = TEMPLATED | {"custom_instructions": "Be kind."}
    example = to_example(row | {"chat_template_kwargs": given})
    assert (example.tools, json.loads(example.history)) == ("[]", [KIND])
    for columns in (
        {"messages": [{"role": "system", "content": NONE_SAID}, *row["messages"]]},
        row | {"chat_template_kwargs": TEMPLATED | {"xml_tools": [NONE_SAID]}},
    ):
        example = to_example(columns)
        assert (example.tools, json.loads(example.history)) == ("[]", [{"role": "system", "content": NONE_SAID}])


CITY = {"city": {"type": "string"}}


@pytest.mark.parametrize(
    "tool",
    [
        {"parameter_definitions": {"city": {"type": "str", "required": True}}},  # Cohere's
        {"inputs": CITY, "output_type": "string"},  # smolagents'
        {"args": CITY},  # LangChain's
        {"arguments": CITY},
        {
            "required_parameters": [{"name": "city", "type": "STRING", "default": ""}],
            "optional_parameters": [],
        },  # ToolBench's
        {"required_parameters": '[{"name": "city", "type": "STRING"}]'},
        {"parameters": {"type": "object", "properties": json.dumps(CITY), "required": '["city"]'}},
    ],
)
def test_parameters_under_other_names_are_declared(tool):
    """Under a name that is not known a tool had no parameters, and the call of it an unknown one."""
    row = chat(ASK, said(TEXT), tools=[{"name": "get_weather", "description": "d"} | tool])
    (read_tool,) = json.loads(to_example(row).tools)
    schema = openai_tool(read_tool)["function"]["parameters"]
    assert (list(schema["properties"]), schema["properties"]["city"]["type"]) == (["city"], "string")
    assert schema["required"] == ["city"]
    assert find_misfit([Call("get_weather", {"city": "Oslo"})], [read_tool]) is None
    assert find_misfit([Call("get_weather", {})], [read_tool]) is not None


def test_a_schema_whose_parts_are_none_is_refused():
    for part, reason in (
        ({"required": "city"}, "the required of 'f' must be a list of names, not str"),
        ({"properties": ["city"]}, "the properties of 'f' must be an object, not list"),
        ({"properties": "{city"}, "the properties of 'f' cannot be read"),
    ):
        with pytest.raises(BadRow, match=reason):
            to_example(chat(ASK, said("ok"), tools=[{"name": "f", "parameters": {"type": "object"} | part}]))


def test_required_names_beside_the_parameters_that_are_no_texts_say_nothing():
    """As within the parameters; a run ended with a TypeError, whatever `on_bad_row`."""
    tool = {"name": "f", "required": [["a"]], "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
    answers = '[{"name": "f", "arguments": {"a": "x"}}]'
    assert to_example({"query": "q", "tools": json.dumps([tool]), "answers": answers}).answers == answers
    assert find_misfit([Call("f", {})], [tool]) is None
    assert find_misfit([Call("f", {})], [tool | {"required": [["a"], "a"]}]) is not None


def test_types_in_capitals_are_those_of_json_schema_and_values_stay():
    """Gemini's types; a parameter called `type`, and values, are none."""
    google = {
        "type": "OBJECT",
        "properties": {"type": {"type": "STRING", "enum": ["STRING", "X"]}, "d": {"type": "ARRAY", "default": "NULL"}},
    }
    example = to_example(chat(ASK, said("ok"), tools=[{"name": "f", "parameters": google}]))
    assert json.loads(example.tools)[0]["parameters"] == {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": ["STRING", "X"]}, "d": {"type": "array", "default": "NULL"}},
    }


def test_flat_parameters_that_are_true_or_false_are_shown_as_any():
    tool = {"name": "f", "parameters": {"a": True, "b": False, "c": {"type": "int"}}}
    assert openai_tool(tool)["function"]["parameters"] == {
        "type": "object",
        "properties": {"a": {"additionalProperties": True}, "b": {}, "c": {"type": "integer"}},
        "required": ["c"],
    }


def test_parameters_in_a_list_are_shown_to_the_model_in_every_prompt():
    """Gorilla's tools: where a chat template writes them, their parameters were none."""
    listed = [{"name": "city", "type": "string", "description": "c"}, {"name": "days", "type": "integer", "default": 1}]
    tool = json.loads(to_example(chat(ASK, said("ok"), tools=[{"name": "f", "parameters": listed}])).tools)[0]
    schema = openai_tool(tool)["function"]["parameters"]
    assert (list(schema["properties"]), schema["required"]) == (["city", "days"], ["city"])
    for wrong in (["city"], 5, True, False, "1.5"):
        with pytest.raises(BadRow, match="the parameters of 'f' must be an object, or a list of objects with a 'name'"):
            to_example(chat(ASK, said("ok"), tools=[{"name": "f", "parameters": wrong}]))


SCHEMA = {
    "title": "FunctionCall",
    "type": "object",
    "properties": {"arguments": {"title": "Arguments", "type": "object"}, "name": {"title": "Name", "type": "string"}},
    "required": ["arguments", "name"],
}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"<tools>\n{json.dumps(WRAPPED[0])}\n{json.dumps(WRAPPED[1])}\n</tools>", ""),
        (f"You are a function calling AI model. <tools> {WRAPPED!r} </tools>", ""),
        (
            "Today is Monday.\n# Tools\nSignatures are within <tools></tools> tags:\n"
            f"<tools>{json.dumps(WRAPPED)}</tools>",
            "Today is Monday.",
        ),
        (
            f"Never book without consent. You may use:\n{json.dumps([WEATHER, NOW])}\nWrite calls as [f(a=1)].",
            "Never book without consent.",
        ),
        (f"SYSTEM: You have these functions -\n{json.dumps(WEATHER, indent=4)}\n\n{json.dumps(NOW)}", ""),
        (f"<|im_system|>tool_declare<|im_middle|>{json.dumps(WRAPPED)}<|im_end|>", ""),  # Toucan's
        *(
            (
                f"You are a function calling AI model. Here are the available tools:<tools> {WRAPPED!r} </tools>Use "
                f"the following pydantic model json schema for each tool call you will make: {SCHEMA}{between}For each "
                "function call return a json object within <tool_call></tool_call> XML tags as follows:\n<tool_call>\n"
                "{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>",
                "",
            )
            for between in ("", " ", "\n")
        ),
        (  # Llama's
            'To call a function, respond with JSON. Respond in the format {"name": function name, "parameters": '
            f"dictionary of argument name and its value}}. Be brief.\n\n{json.dumps(WRAPPED[0], indent=4)}\n\n"
            f"{json.dumps(WRAPPED[1], indent=4)}\n\n",
            "Be brief.",
        ),
        (
            "Be kind:\n1. Make one or more tool calls.\n2. Be brief. You SHOULD NOT include any other text.\n"
            f"You serve: {{'city': 'Oslo', 'plan': 'gold'}}. Use these tools:\n{json.dumps([WEATHER, NOW])}\n"
            "The example format is as follows.\n```\n[f(a=1)]\n```",
            "Be kind:\n2. Be brief. You serve: {'city': 'Oslo', 'plan': 'gold'}.",
        ),
        (  # ToolBench's
            "You are AutoGPT. Your output should follow this format:\nThought:\nAction\nAction Input:\n\nThen go on.\n"
            f"You have access to the following APIs: {[WEATHER, NOW]!r}",
            "You are AutoGPT. Then go on.",
        ),
        (
            "".join(
                f"{n}. Name: {t['name']}\nDescription: {t['description']}\nParameters: {json.dumps(t['parameters'])}\n"
                for n, t in enumerate((WEATHER, NOW), 1)
            ),
            "",
        ),
    ],
)
def test_tools_in_the_system_text_and_what_else_it_says(text, left):
    example = to_example({"messages": [{"role": "system", "content": text}, ASK, said(TEXT)]})
    assert [tool["name"] for tool in json.loads(example.tools)] == ["get_weather", "now"]
    assert json.loads(example.history) == ([{"role": "system", "content": left}] if left else [])


@pytest.mark.parametrize(
    "row",
    [
        chat({"role": "system", "content": "Be brief."}, ASK, said(TEXT)),
        chat({"role": "developer", "content": "Be brief."}, ASK, said(TEXT)),
        chat(ASK, said(TEXT), system="Be brief."),
        {"query": "Weather in Oslo?", "tools": WRAPPED, "answers": [OSLO], "system": "Be brief."},
    ],
)
def test_a_system_text_beside_the_tools_stays(row):
    assert json.loads(to_example(row).history) == [{"role": "system", "content": "Be brief."}]


PROFILE = 'You serve {"name": "Ann", "plan": "gold"}. Staff: [{"name": "Bo", "description": "cook"}].'
LISTED = f"Be kind. You may use:\n{json.dumps([WEATHER, NOW])}\nWrite calls as [f(a=1)]."


@pytest.mark.parametrize("flat", [True, False])
def test_a_system_text_beside_a_column_of_tools(flat):
    """Objects with a name are no tools unless the column offers them; the list that it has is there once."""

    def said_of(system, tools=WRAPPED):
        plain = {"query": "Weather in Oslo?", "answers": TEXT} if flat else {"messages": [ASK, said(TEXT)]}
        example = to_example(plain | {"system": system, "tools": tools})
        assert [tool["name"] for tool in json.loads(example.tools)] == ["get_weather", "now"]
        return [turn["content"] for turn in json.loads(example.history)]

    assert said_of(PROFILE) == [PROFILE]
    assert said_of(LISTED) == ["Be kind."]
    with pytest.raises(BadRow, match="lacks 'now', which the system text lists: add it"):
        said_of(LISTED, [WEATHER])
    if flat:  # of a chat with an empty column the text's tools are on offer
        with pytest.raises(BadRow, match="lacks 'get_weather', which the system text lists"):
            said_of(LISTED, [])


def test_the_same_system_text_in_two_places_is_there_once():
    assert json.loads(to_example(chat(KIND, ASK, said(TEXT), system="Be kind.")).history) == [KIND]
    row = {"system": LISTED, "messages": [{"role": "system", "content": LISTED}, ASK, said(TEXT)]}
    example = to_example(row)
    assert (json.loads(example.tools), json.loads(example.history)) == ([WEATHER, NOW], [KIND])


def test_a_system_text_that_is_there_again_in_other_white_space_is_there_once():
    given = TEMPLATED | {"custom_instructions": "Be kind.\n\nBe  brief. "}
    system = {"role": "system", "content": "Be kind.\nBe brief."}
    example = to_example({"messages": [system, ASK, said("I cannot know.")], "chat_template_kwargs": given})
    assert json.loads(example.history) == [{"role": "system", "content": "Be kind.\n\nBe  brief."}]


def test_objects_with_a_name_are_no_tools():
    """A customer, and an example beside a schema of answers in JSON."""
    schema = 'Answer by {"properties": {}, "examples": [{"name": "Bo", "age": 3}]}.'
    for text in (PROFILE.partition(" Staff")[0], schema):
        with pytest.raises(BadRow, match="neither a tools column nor a JSON list of tools"):
            to_example({"messages": [{"role": "system", "content": text}, ASK, said("ok")]})
    for tools in ([NOW | {"parameters": {}}], [{"name": "now"}], [{"type": "function", "function": NOW}]):
        text = f"Use {json.dumps(tools)}"
        example = to_example({"messages": [{"role": "system", "content": text}, ASK, said("[now()]")]})
        assert [tool["name"] for tool in json.loads(example.tools)] == ["now"]


def test_tools_of_a_message_are_those_of_the_column():
    assert json.loads(to_example(chat(KIND | {"tools": [NOW]}, ASK, said(TEXT))).tools) == [WEATHER, NOW]
    with pytest.raises(BadRow, match="lacks 'get_weather', which a message brings"):
        to_example(chat(KIND | {"functions": [WEATHER]}, ASK, said("ok"), tools=[NOW]))


RL_TOOLS = "1. Name: now\nDescription: Time.\nParameters: {}\n\n**Output Format**\n<think> thoughts </think>"
RL_CALL = '<think> They ask. </think>\n<tool_call>\n{"name": "now", "parameters": {}}\n</tool_call>'
RL_ASK = "**Dialogue Records History**\n<user> What time is it? </user>"
SECTIONS = (
    f"[BEGIN OF AVAILABLE TOOLS]\n{json.dumps([NOW])}\n[END OF AVAILABLE TOOLS]\n"
    "[BEGIN OF QUERY]\nWhat time is it?\n[END OF QUERY]\n"
)
SEAL = (
    "api_list = [{'api_name': 'now', 'api_description': 'd', 'parameters': {}, 'required': []}]\n"
    'task_instruction = "What time is it?"\nOutput:\n'
)
SEAL_CALL = "[{'api': 'now', 'parameters': {}, 'responses': []}]"
ASK_TIME = [{"role": "user", "content": "What time is it?"}]
TOOLCALL = '<TOOLCALL>[{"name": "now", "arguments": {}}]</TOOLCALL>'
PREFERRED = {"chosen_response": said(TOOLCALL), "rejected_response": said("No.")}

GLAIVE_1 = 'ASSISTANT: <functioncall> {"name": "now", "arguments": {}} <|endoftext|>\n'
BLOCKS = [{"type": "thinking", "thinking": "Hm."}, {"type": "tool_use", "id": "t", "name": "now", "input": {}}]
BEDROCK = [
    {"reasoningContent": {"reasoningText": {"text": "Hm."}}},
    {"toolUse": {"toolUseId": "t", "name": "now", "input": {}}},
]
ITEMS = [
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}", "status": "completed"},
]
GEMINI_ASK = {"role": "user", "parts": [{"text": "What time is it?"}]}
GEMINI_CALL = {
    "role": "model",
    "parts": [{"text": "Hm.", "thought": True}, {"functionCall": {"name": "now", "args": {}}}],
}
AI = {"type": "ai", "content": "", "tool_calls": [{"name": "now", "args": {}, "id": "c", "type": "tool_call"}]}
CALLED = said(reasoning_content="Hm.", tool_calls=[{"id": "c", "type": "function", "function": {"name": "now"}}])


def serialised(kind, **keys):
    """A message as LangChain's `dumpd` writes it."""
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", f"{kind}Message"], "kwargs": keys}


AI_CALLED = {key: value for key, value in CALLED.items() if key != "role"}
SERVED = [
    {"response": {"type": "message", "role": "assistant", "content": BLOCKS, "stop_reason": "tool_use"}},
    {"response": BLOCKS},
    {"response": {"choices": [{"index": 0, "message": CALLED}]}},
    {"response": json.dumps({"choices": [{"index": 0, "message": CALLED}]})},
    {"choices": [{"index": 0, "message": CALLED}]},
    {"response": {"object": "response", "output": ITEMS}},
    {"response": {"candidates": [{"content": GEMINI_CALL}]}},
    {"response": {"status_code": 200, "request_id": "r", "body": {"choices": [{"index": 0, "message": CALLED}]}}},
    {"response_body": {"object": "response", "error": None, "output": ITEMS}},
    {"outputs": {"message": CALLED}},
    {"outputs": {"messages": [*ASK_TIME, CALLED]}},
    {"outputs": {"generations": [[{"text": "", "generation_info": None, "message": serialised("AI", **AI_CALLED)}]]}},
    {"expectedOutput": CALLED},
    {"response": {"statusCode": 200, "body": json.dumps({"choices": [{"message": CALLED}]})}},
    {"response": {"output": {"message": {"role": "assistant", "content": BEDROCK}}, "stopReason": "tool_use"}},
    {
        "custom_id": "r",
        "result": {"type": "succeeded", "message": {"type": "message", "role": "assistant", "content": BLOCKS}},
    },
]
"""What servers of OpenAI, Anthropic and Google send, and how files of batches, LangSmith and Langfuse keep it."""
TIME_CALL = {"type": "function_call", "name": "now", "arguments": "{}"}
_REQUEST = "responses_create_params"
GYM = {_REQUEST: {"input": ASK_TIME, "tools": [{"type": "function", "strict": False, **NOW}]}}
VERL = {"data_source": "d", "prompt": ASK_TIME, "reward_model": {"style": "rule", "ground_truth": json.dumps([TIME])}}


@pytest.mark.parametrize(
    ("row", "cot"),
    [
        ({"instruction": RL_TOOLS, "input": RL_ASK, "output": RL_CALL}, "They ask."),
        (
            {
                "prompt": [{"role": "system", "content": RL_TOOLS}, {"role": "user", "content": RL_ASK}],
                "reward_model": {"style": "rule", "ground_truth": RL_CALL},
            },
            "They ask.",
        ),
        ({"instruction": SECTIONS, "input": "", "output": '```\n[{"name": "now", "arguments": {}}]\n```'}, ""),
        ({"conversations": [{"from": "human", "value": SEAL}, {"from": "gpt", "value": SEAL_CALL}]}, ""),
        ({"prompt": "What time is it?", "completion": "[now()]", "tools": [NOW]}, ""),
        ({"prompt": ASK_TIME, "completion": [said("[now()]")], "tools": [NOW]}, ""),
        ({"prompt": "What time is it?", "chosen": "[now()]", "rejected": "No.", "tools": [NOW]}, ""),
        ({"prompt": "What time is it?", "chosen": [*ASK_TIME, said("[now()]")], "tools": [NOW]}, ""),
        ({"prompt": [KIND, *ASK_TIME], "chosen": [KIND, *ASK_TIME, said("[now()]")], "tools": [NOW]}, ""),
        ({"chosen": [*ASK_TIME, said("[now()]")], "rejected": [*ASK_TIME, said("No.")], "tools": [NOW]}, ""),
        ({"messages": ASK_TIME, "tools": [NOW], **PREFERRED}, ""),
        ({"messages": ASK_TIME, "tools": [NOW], "answers": [TIME]}, ""),
        ({"question": [ASK_TIME], "function": [NOW], "ground_truth": [{"now": {}}]}, ""),
        ({"query": "What time is it?", "tools": [NOW], "answers": "[now()]"}, ""),
        ({"query": "What time is it?", "tools": NOW, "answers": [{"tool": "now", "parameters": {}}]}, ""),
        ({"query": "What time is it?", "tools": [NOW], "answers": ["now()"]}, ""),
        ({"query": "What time is it?", "tools": [NOW], "cot": "Hm.", "answers": "<think>Hm.</think>[now()]"}, "Hm."),
        ({"sample": f"SYSTEM: Use these functions -\n{json.dumps(NOW)}\n\nUSER: What time is it?\n\n{GLAIVE_1}"}, ""),
        ({"input": "What time is it?", "output": "[now()]", "tools": [NOW]}, ""),
        ({"input": "What time is it?", "answers": "[now()]", "tools": [NOW], "contents": "a text, not used"}, ""),
        *(({"messages": ASK_TIME, "tools": [NOW], **answer}, "Hm.") for answer in SERVED),
        *(({"request": {"messages": ASK_TIME, "tools": [NOW]}, **answer}, "Hm.") for answer in SERVED),
        ({"input": {"messages": ASK_TIME, "tools": [NOW]}, "preferred_output": [said("[now()]")]}, ""),
        *(
            ({name: given, **SERVED[2]}, "Hm.")
            for given in (
                {"model": "m", "messages": ASK_TIME, "tools": [NOW]},
                {"method": "POST", "url": "/v1", "body": {"messages": ASK_TIME, "tools": [NOW]}},
                json.dumps({"messages": ASK_TIME, "tools": [NOW]}),
                {"messages": [[serialised("Human", content="What time is it?")]], "tools": [NOW]},
            )
            for name in ("request", "request_body", "body", "inputs")
        ),
        ({"request": {"model": "m", "messages": ASK_TIME, "tools": [NOW]}, "model": "m", **SERVED[2]}, "Hm."),
        *(({"input": given, "tools": [NOW], "output": ITEMS}, "Hm.") for given in ("What time is it?", ASK_TIME)),
        ({"input": [*ASK_TIME, *ITEMS], "tools": [NOW]}, "Hm."),
        ({"messages": [*ASK_TIME, *ITEMS], "tools": [NOW]}, "Hm."),
        ({"query": "What time is it?", "tools": [NOW], "output": ITEMS}, "Hm."),
        ({"contents": [GEMINI_ASK, GEMINI_CALL], "tools": [{"functionDeclarations": [NOW]}]}, "Hm."),
        ({"messages": [{"type": "human", "content": "What time is it?"}, AI], "tools": [NOW]}, ""),
        ({"conversation": [{"human": "What time is it?", "assistant": "[now()]"}], "tools": [NOW]}, ""),
        ({"trajectory": [*ASK_TIME, said("[now()]")], "tools": [NOW]}, ""),
        *(
            (GYM | {"agent_ref": {"name": "a"}, "pass_rate": 0.5} | answer, "")
            for answer in (
                {"expected_action": TIME_CALL},
                {"expected_action": json.dumps(TIME_CALL)},
                {"expected_action": TIME_CALL | {"content": None}},
                {"expected_action": {"type": "function_call_batch", "calls": [TIME_CALL]}},
                {"expected_action": json.dumps({"type": "function_call_batch", "calls": [TIME_CALL]})},
                {"expected_answers": [TIME], "id": 3},
                {"expected_action": "null", "expected_answers": [TIME]},  # of a table of texts
                {"expected_action": TIME_CALL | {"content": "", "calls": []}},
                {"expected_answer": [TIME]},
                {"ground_truth": [{"name": "now", "arguments": "{}"}], "category": "c"},
                {"ground_truth": json.dumps([TIME])},
                {"question": "What time is it?", "ground_truth": [TIME]},
            )
        ),
        (GYM | {"response": {"object": "response", "output": ITEMS}, "ground_truth": "12", "reward": 1.0}, "Hm."),
        (GYM | {"response": {"object": "response", "output": ITEMS}, "expected_answers": [TIME]}, "Hm."),
        (GYM | {"response": {"object": "response", "output": ITEMS}, "expected_answer": "12"}, "Hm."),
        (GYM | {"expected_action": TIME_CALL, "ground_truth": "12"}, ""),
        # Of a table.
        (GYM | {"expected_action": TIME_CALL | dict.fromkeys(("role", "content", "calls"))}, ""),
        ({_REQUEST: GYM[_REQUEST] | {"id": None, "tools": [NOW]}, "id": 3, "expected_action": TIME_CALL}, ""),
        (
            {"responses_create_params": {"input": "What time is it?", "tools": [NOW]}, "expected_action": TIME_CALL},
            "",
        ),
        (VERL | {"extra_info": {"index": 0, "tools": json.dumps([NOW]), "tools_kwargs": {"now": None}}}, ""),
        (VERL | {"extra_info": {"tools": [{"type": "function", "function": NOW}]}}, ""),
        *(
            ({name: {"messages": ASK_TIME, "tools": [NOW], "max_tokens": 9}, **SERVED[-1]}, "Hm.")
            for name in ("params", "body")
        ),
        ({"request": {"messages": ASK_TIME, "tools": [NOW], "params": {"top_p": 1}}, **SERVED[2]}, "Hm."),
        ({"request": {"custom_id": "r", "params": {"messages": ASK_TIME, "tools": [NOW]}}, **SERVED[-1]}, "Hm."),
        ({"instruction": "What time is it?", "expected_output": "[now()]", "tools": [NOW]}, ""),
        ({"instruction": "Now.", "query": "What time is it?", "expected_output": "[now()]", "tools": [NOW]}, ""),
        ({"instruction": "Now.", "prompt": "What time is it?", "expected_output": "[now()]", "tools": [NOW]}, ""),
        ({"query": "What time is it?", "answers": [TIME], "tools": [NOW]} | GYM, ""),
        *(
            ({name: [*ASK_TIME, said("[now()]")], "tools": [NOW], "custom_id": "r", "result": {"type": kind}}, "")
            for name in ("trajectory", "chat", "input")
            for kind in ("errored", "succeeded")
        ),
    ],
)
def test_forms_of_known_sources(row, cot):
    example = to_example(row)
    assert (example.query, json.loads(example.answers), example.cot) == ("What time is it?", [TIME], cot)
    assert [turn for turn in json.loads(example.history) if turn != KIND] == []


def test_an_answer_in_a_list_of_its_own():
    for texts in (["It is noon."], ["", "It is noon."]):
        assert read(chat(ASK, answers=texts)) == ([], "", "It is noon.")
    assert read(chat(ASK, answers=[TEXT, "now()"])) == ([OSLO, TIME], "", "")
    assert read(chat(ASK, answers=["<think>Hm.</think>", "I look.", TEXT])) == ([OSLO], "Hm.\n\nI look.", "")


def test_answer_to_a_tool_where_the_chat_waits_for_it():
    """`input_messages` and `ground_truth`: the call in the prompt is not the target."""
    system = f"SYSTEM: You have access to the following functions -\n{json.dumps(WEATHER)}"
    functioncall = f'<functioncall> {{"name": "get_weather", "arguments": \'{json.dumps(OSLO["arguments"])}\'}}'
    messages = [ASK, said(functioncall), {"role": "tool", "content": "rain"}]
    example = to_example({"system": system, "input_messages": messages, "ground_truth": "It rains."})
    assert (example.query, example.response) == ("Weather in Oslo?", "It rains.")
    assert json.loads(example.history) == [ASK, said(TEXT), {"role": "tool", "content": "rain"}]


def test_a_result_of_a_batch_without_its_request_is_called_by_its_name():
    with pytest.raises(BadRow, match="column 'result': is an answer without its request"):
        read_raw(SERVED[-1])


def test_a_message_that_nemo_gym_expects():
    for action in (
        {"type": "message", "content": "Which day?", "name": None, "role": None},
        '{"type": "message", "content": "Which day?"}',
    ):
        example = to_example(
            {"responses_create_params": {"input": [KIND, ASK], "tools": WRAPPED}, "expected_action": action}
        )
        assert (example.query, example.answers, example.response) == ("Weather in Oslo?", "[]", "Which day?")
        assert json.loads(example.history) == [KIND]


def test_what_stands_beside_the_answer_that_nemo_gym_expects_is_reported_or_refused():
    row = GYM | {"expected_action": TIME_CALL}
    assert read_raw(row | {"ground_truth": "It is noon."}).notes["unused/ground_truth beside expected_action"] == 1
    assert read_raw(row | {"expected_answer": "12"}).notes["unused/expected_answer"] == 1
    for calls in ([OSLO], json.dumps([OSLO])):
        with pytest.raises(BadRow, match="'ground_truth': may be another answer than 'expected_action': keep one"):
            read_raw(row | {"ground_truth": calls})


@pytest.mark.parametrize("name", ["output", "response", "choices"])
@pytest.mark.parametrize("expected", ["expected_output", "expectedOutput"])
def test_an_output_beside_the_one_that_was_expected_is_refused(name, expected):
    """An experiment's row: what a model wrote, and what it should have written."""
    for asked in ({"input": "Weather?"}, {"messages": [ASK]}, {"query": "Weather?"}, {"instruction": "Weather?"}):
        row = asked | {"tools": WRAPPED, name: "[now()]"}
        with pytest.raises(BadRow, match=f"'{expected}': says something else than '{name}', which may be any model's"):
            to_example(row | {expected: TEXT})
        for same in ("[now()]", " now()\n", [TIME], said(tool_calls=[{"function": TIME}])):
            reading = read_raw(row | {expected: same})
            assert (reading.examples[0].answers, reading.notes[f"unused/{expected}"]) == (json.dumps([TIME]), 0)


@pytest.mark.parametrize("nothing", [{}, {"role": None, "content": None}])
def test_an_expected_output_that_a_table_has_in_the_place_of_nothing(nothing):
    row = {"messages": [ASK], "tools": WRAPPED, "output": "[now()]", "expected_output": nothing}
    assert read_raw(row).notes["unused/expected_output"] == 1


def test_an_empty_list_of_calls_beside_a_request():
    for asked in ({"instruction": "Weather?"}, {"messages": [ASK]}):
        assert read(asked | {"tools": WRAPPED, "expected_output": []}) == ([], "", "")
        assert read(asked | {"tools": WRAPPED, "answers": []}) == ([], "", "")
        with pytest.raises(BadRow, match="says nothing"):  # a server that sent none
            to_example(asked | {"tools": WRAPPED, "output": []})
        if "messages" in asked:
            with pytest.raises(BadRow, match="says nothing"):
                to_example(asked | {"tools": WRAPPED, "tool_calls": [], "content": "Sunny."})


def test_an_output_in_words_beside_the_one_that_was_expected():
    row = {"messages": [ASK], "tools": WRAPPED, "output": said("Which day?")}
    assert to_example(row | {"expected_output": "Which day?"}).response == "Which day?"
    with pytest.raises(BadRow, match="'expected_output': says something else than 'output'"):
        to_example(row | {"expected_output": "Which month?"})


def test_earlier_turns_beside_an_instruction():
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for history in (earlier, json.dumps(earlier), [["Hi", "Hello"]]):
        for name in ("output", "expected_output"):
            example = to_example({"instruction": "Weather?", "history": history, "tools": WRAPPED, name: TEXT})
            assert (example.query, json.loads(example.history)) == ("Weather?", earlier)


def test_traces_of_opentelemetry():
    """The answer stands beside what was sent, which ends with a call and its result."""
    call = {"type": "tool_call", "id": "c", "name": "get_weather", "arguments": {"city": "Oslo"}}
    sent = [
        {"role": "user", "parts": [{"type": "text", "content": "Weather in Oslo?"}]},
        {"role": "assistant", "parts": [call], "finish_reason": "tool_call"},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "result": "rain"}]},
    ]
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": "Rain."}], "finish_reason": "stop"}]
    example = to_example({"input_messages": sent, "output_messages": answer, "tools": WRAPPED})
    assert (example.query, example.response) == ("Weather in Oslo?", "Rain.")
    assert json.loads(example.history) == [ASK, said(TEXT), {"role": "tool", "content": "rain"}]


CITY = {"city": "Oslo"}
USE = {"name": "get_weather", "input": CITY}


@pytest.mark.parametrize(
    ("role", "call", "answer"),
    [  # the call with the id # and its answer: messages, or the parts of an assistant's and of this role's
        (None, said(tool_calls=[CALL | {"id": "#"}]), {"role": "tool", "tool_call_id": "#", "content": "answer #"}),
        (
            None,
            {"type": "function_call", "call_id": "#", "name": "get_weather", "arguments": json.dumps(CITY)},
            {"type": "function_call_output", "call_id": "#", "output": "answer #"},
        ),
        (
            None,
            {"type": "ai", "data": {"tool_calls": [{"id": "#", "name": "get_weather", "args": CITY}]}},
            {"type": "tool", "data": {"tool_call_id": "#", "content": "answer #"}},
        ),
        (
            "user",
            {"type": "tool_use", "id": "#", **USE},
            {"type": "tool_result", "tool_use_id": "#", "content": "answer #"},
        ),
        (
            "user",
            {"toolUse": {"toolUseId": "#", **USE}},
            {"toolResult": {"toolUseId": "#", "content": [{"text": "answer #"}]}},
        ),
        (
            "user",
            {"functionCall": {"id": "#", "name": "get_weather", "args": CITY}},
            {"functionResponse": {"id": "#", "name": "get_weather", "response": "answer #"}},
        ),
        (
            "user",
            {"function_call": {"id": "#", "name": "get_weather", "args": CITY}},  # of Google's own libraries
            {"function_response": {"id": "#", "name": "get_weather", "response": "answer #"}},
        ),
        (
            "tool",
            {"type": "tool-call", "toolCallId": "#", "toolName": "get_weather", "input": CITY},
            {"type": "tool-result", "toolCallId": "#", "result": "answer #"},
        ),
        (
            "tool",
            {"type": "tool_call", "id": "#", "name": "get_weather", "arguments": CITY},
            {"type": "tool_call_response", "id": "#", "result": "answer #"},
        ),
    ],
)
def test_answers_of_tools_are_put_in_the_order_of_the_calls(role, call, answer):
    """Whose answer is whose, only ids say: both calls are of one tool."""
    calls, results = (
        [json.loads(json.dumps(one).replace("#", i)) for i in ids] for one, ids in ((call, "12"), (answer, "21"))
    )
    if role:
        calls, results = [said(calls)], [{"role": role, "content": results}]
    row = chat(ASK, *calls, *results, said("Rain."), {"role": "user", "content": "Thanks"}, said("Bye"))
    roles = [(turn["role"], turn["content"]) for turn in json.loads(to_example(row).history)]
    assert roles[1:4] == [
        ("assistant", "[get_weather(city='Oslo'), get_weather(city='Oslo')]"),
        ("tool", "answer 1"),
        ("tool", "answer 2"),
    ]


@pytest.mark.parametrize(
    ("called", "results"),
    [
        (
            {"parts": [{"functionCall": {"name": tool, "args": {}}} for tool in ("now", "get_weather")]},
            [
                {
                    "role": "user",
                    "parts": [
                        {"functionResponse": {"name": tool, "response": f"of {tool}"}}
                        for tool in ("get_weather", "now")
                    ],
                }
            ],
        ),
        (
            {"content": "[now(), get_weather()]"},
            [{"role": "function", "name": tool, "content": f"of {tool}"} for tool in ("get_weather", "now")],
        ),
        (
            {"tool_calls": [{"id": i, "function": {"name": i}} for i in ("now", "get_weather")]},
            [
                {"role": "tool", "tool_call_id": tool, "content": f"<tool_response>of {tool}</tool_response>"}
                for tool in ("get_weather", "now")
            ],
        ),
    ],
)
def test_answers_of_tools_without_ids_are_put_in_the_order_of_the_names(called, results):
    history = json.loads(
        read_raw(chat(ASK, {"role": "assistant", **called}, *results, said("ok")), "every").examples[1].history
    )
    assert [turn["content"] for turn in history[1:]] == ["[now(), get_weather()]", "of now", "of get_weather"]


def test_answers_of_a_tool_that_is_called_twice_stay_in_their_order():
    """A name says of two calls not which."""
    results = [
        {"role": "function", "name": name, "content": text}
        for name, text in zip(*[["now", "get_weather", "now"], "123"], strict=True)
    ]
    row = chat(ASK, said("[now(), get_weather(), now()]"), *results, said("ok"))
    assert [turn["content"] for turn in json.loads(read_raw(row, "every").examples[1].history)[2:]] == ["1", "2", "3"]


def test_a_user_goes_on_after_a_result():
    row = chat(
        ASK,
        said("[now()]"),
        {"role": "user", "content": "<tool_response>\n12\n</tool_response>\nAnd in Oslo?"},
        said(TEXT),
    )
    example = to_example(row)
    assert (example.query, json.loads(example.answers)) == ("And in Oslo?", [OSLO])
    assert json.loads(example.history) == [ASK, said("[now()]"), {"role": "tool", "content": "12"}]


@pytest.mark.parametrize(
    "result",
    [
        {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"},
        {"role": "tool", "content": "<tool_response>\nrain\n</tool_response>"},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}]},
        {"role": "function", "name": "get_weather", "content": "rain"},
        {"from": "observation", "value": "rain"},
        {"role": "environment", "content": "rain"},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "<tool_response>rain</tool_response>"}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "rain"}]},
        {"role": "function", "name": "get_weather", "content": [{"text": "rain"}], "extra": {"function_id": "1"}},
        {"role": "user", "content": "Observation: rain"},
        {"role": "user", "content": "[TOOL_RESULTS] rain[/TOOL_RESULTS]"},
        {"role": "user", "content": "<function_results>\nrain\n</function_results>"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "c1", "content": [{"text": "rain"}]}}]},
        {"role": "tool", "name": "functions.get_weather", "channel": "commentary", "recipient": "assistant"}
        | {"content": "rain"},
        {"role": "tool", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}]},
        *(
            {"role": role, "parts": [{"functionResponse": {"name": "get_weather", "response": "rain"}}]}
            for role in ("user", "function")
        ),
    ],
)
def test_ways_of_a_tool_to_answer(result):
    call, text = read_raw(chat(ASK, said(tool_calls=[CALL]), result, said("Rain.")), "every").examples
    assert (json.loads(call.answers), text.response, text.query) == ([OSLO], "Rain.", "Weather in Oslo?")
    assert json.loads(text.history)[-1] == {"role": "tool", "content": "rain"}


@pytest.mark.parametrize(
    ("content", "text"), [([{"json": {"sky": "rain"}}], '{"sky": "rain"}'), ([{"json": None, "text": "rain"}], "rain")]
)
def test_a_result_in_json_of_bedrock(content, text):
    result = {"toolUseId": "c1", "content": content, "status": "success"}
    row = chat(ASK, said(tool_calls=[CALL]), {"role": "user", "content": [{"toolResult": result}]}, said("Rain."))
    history = json.loads(read_raw(row, "every").examples[1].history)
    assert history[-1] == {"role": "tool", "content": text}


SKY = {"sky": "bruine à Orléans"}


@pytest.mark.parametrize(
    ("role", "content"),
    [
        ("tool", SKY),
        ("user", [{"toolResult": {"toolUseId": "c1", "content": [{"json": SKY}]}}]),
        ("user", [{"functionResponse": {"name": "get_weather", "response": SKY}}]),
        ("tool", [{"type": "tool-result", "toolCallId": "c1", "result": SKY}]),
        ("tool", [{"type": "tool-result", "toolCallId": "c1", "output": {"type": "json", "value": SKY}}]),
    ],
)
def test_a_result_that_is_an_object_is_written_in_its_own_letters(role, content):
    row = chat(ASK, said(tool_calls=[CALL]), {"role": role, "content": content}, said("Rain."))
    history = json.loads(read_raw(row, "every").examples[1].history)
    assert history[-1]["content"] == '{"sky": "bruine à Orléans"}'


def test_a_request_may_begin_as_an_observation_where_no_call_comes_before():
    asked = {"role": "user", "content": "Observation: rain. And in Oslo?"}
    example = read_raw(chat(asked, said(tool_calls=[CALL]))).examples[0]
    assert (example.query, example.history, json.loads(example.answers)) == (asked["content"], "[]", [OSLO])


def test_a_result_that_is_not_whole_is_no_answer_that_was_cut_off():
    result = {"role": "tool", "tool_call_id": "c1", "status": "in_progress", "content": "rain"}
    assert read(chat(ASK, said(tool_calls=[CALL]), result, said("Rain.")))[0] == [OSLO]


def test_turns_with_weight_0_are_no_targets():
    row = chat(ASK, said(tool_calls=[CALL]), ASK, said("No.", weight=0))
    assert read(row) == ([OSLO], "", "")
    with pytest.raises(BadRow, match="no assistant turn"):
        to_example(chat(ASK, said("No.", weight=0)))


@pytest.mark.parametrize(
    ("mark", "targets"),
    [
        *(({"weight": 0.0}, 1), ({"train": 0}, 1), ({"loss": 1}, 2), ({"weight": 1}, 2)),
        # Of a table of texts.
        *(({"train": "false"}, 1), ({"loss": "True"}, 2), ({"weight": "0"}, 1), ({"weight": "1.0"}, 2)),
    ],
)
def test_a_mark_of_training_is_a_number_or_a_truth_value(mark, targets):
    row = chat(ASK, said(tool_calls=[CALL], **mark), {"role": "tool", "content": "rain"}, said("Rain."))
    assert len(read_raw(row, "every").examples) == targets


@pytest.mark.parametrize(
    "mark", [{"weight": "half"}, {"weight": 0.5}, {"weight": [0]}, {"train": "no"}, {"loss": "0.5"}]
)
def test_a_mark_of_training_that_is_neither_is_refused(mark):
    (name, value), *_ = mark.items()
    with pytest.raises(BadRow, match=re.escape(f"turn 2 has the {name} {value!r}: give 0 or 1, or false or true")):
        to_example(chat(ASK, said(tool_calls=[CALL], **mark)))


def test_a_tool_that_is_listed_twice_is_on_offer_once_and_another_of_its_name_is_counted():
    other, tools = NOW | {"description": "Tell the date."}, [NOW, WEATHER]
    notes = "repair/tools that a row lists twice, kept once", "ambiguous/names that different tools of a row share"
    for row, kept, counts in (
        ({"query": "Hi", "tools": tools, "answers": [TIME]}, tools, (0, 0)),
        ({"query": "Hi", "tools": [*tools, NOW, NOW, other], "answers": [TIME]}, [*tools, other], (2, 1)),
        (chat(ASK, said(tool_calls=[CALL]), tools=[*tools, other, NOW]), [*tools, other], (1, 1)),
        (chat(ASK | {"tools": tools}, said(tool_calls=[CALL]) | {"tools": tools}, tools=None), tools, (2, 0)),
    ):
        found = read_raw(row)
        assert json.loads(found.examples[0].tools) == kept
        assert tuple(found.notes[note] for note in notes) == counts


@pytest.mark.parametrize("more", [[], [{"role": "user", "content": "Thanks"}]])
def test_a_request_at_the_end_that_nobody_answers_is_counted(more):
    notes = read_raw(chat(ASK, said(TEXT), *more)).notes
    assert notes["left out/requests at the end that nobody answers"] == len(more)


def test_ids_of_the_rows_of_one_chat():
    row = chat(ASK, said(tool_calls=[CALL]), {"role": "tool", "content": "rain"}, said("Rain."), id=7)
    assert [example.id for example in read_raw(row, "every").examples] == ["7-1", "7-3"]
    assert read_raw(row).examples[0].id == "7"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat(ASK, said("ok", audio={"id": 1})), "turn 2 has the key 'audio', which is not known"),
        (chat({"role": "user", "content": [{"type": "image_url"}]}, said("ok")), "a part of the type 'image_url'"),
        (chat(ASK, said("ok"), images=["a.png"]), "is about text alone"),
        (chat(ASK, {"role": "critic", "content": "ok"}), "no known role: 'critic'"),
        (chat(ASK, said(TEXT, tool_calls=[CALL])), "both in the text and beside it"),
        (
            chat(ASK, said("<tool_response>rain</tool_response>\nIt rains.")),
            "turn 2: the assistant says what a tool gave back",
        ),
        (chat(ASK, said("<tool_call>oops</tool_call>")), "turn 2: the calls cannot be read"),
        (chat(ASK, said("get_weather('Oslo')")), "turn 2: the calls cannot be read"),
        (chat(ASK, said(function_calls="get_weather('Oslo')")), "turn 2: the calls cannot be read: no named argument"),
        (chat(ASK, said(function_calls="Hello")), "turn 2: the calls cannot be read: 'Hello'"),
        (chat(ASK, {"role": "function_call", "content": "Hello"}), "the calls cannot be read: 'Hello'"),
        (
            chat(ASK, said(tool_calls=[{"function": {"name": "get_weather", "arguments": '{"city": '}}])),
            "turn 2: the arguments of 'get_weather' cannot be read: no value where the text ends",
        ),
        # Turns are counted as the row has them: a system's text, tools and joined turns are turns, too.
        (chat(KIND, ASK, said("[now(")), "turn 3: the calls cannot be read"),
        (chat(KIND, ASK, said("")), "turn 3, the assistant's, says nothing"),
        (chat(ASK, said("One"), said("moment."), ASK, said("")), "turn 5, the assistant's, says nothing"),
        (
            chat(ASK, said("No.", weight=0)),
            "no assistant turn that answers a user turn and is not marked as one not to",
        ),
        (chat(ASK, said("<think>Oslo.</think>")), "says nothing but a thought"),
        (chat(ASK, said(tool_calls=[CALL]), answers=[TIME]), "another answer than that in 'messages'"),
        (chat(ASK, said("ok"), tools="not tools"), "readable neither as JSON nor as a Python literal"),
        (
            chat(ASK, said(tool_calls=[CALL]), {"role": "tool", "content": "rain"}, ASK, said("Rain.")),
            "asks 'Weather in Oslo?' again right after a tool's result",
        ),
        ({"prompt": "Hi", "completion": "Hello.", "label": False, "tools": [NOW]}, "the answer is not to be given"),
        (chat(ASK, said("Hello."), label=False), "the answer is not to be given"),
        ({"instruction": "Hi", "output": "Ho", "kto_tag": False, "tools": [NOW]}, "the answer is not to be given"),
        ({"prompt": "Hi", "chosen": [ASK, said("ok")], "tools": [NOW]}, "is a chat that does not go on from 'prompt'"),
        (
            {"question": [ASK_TIME, ASK_TIME], "function": [NOW], "ground_truth": [["now()"], ["now()"]]},
            "holds 2 lists of messages, as BFCL's multi-turn rows do",
        ),
        ({"query": "Hi", "tools": [NOW], "answers": [[TIME], [TIME]]}, "2 lists of calls, one for each turn"),
        (
            {"prompt": "<|im_start|>user\nHi<|im_end|>\n", "completion": "Ho<|im_end|>", "tools": [NOW]},
            "is what a chat template has made of a chat ('<|im_start|>')",
        ),
        ({"query": "<s>[INST] Hi [/INST]", "answers": "[now()]", "tools": [NOW]}, "a chat template has made of a chat"),
        (chat(ASK, said("ok"), tools=["now"]), "every tool must be an object with a string 'name', not 'now'"),
        (
            chat(ASK, said([*BLOCKS, {"type": "text", "text": "Done."}])),
            "turn 2 says something after its calls, which belongs to no answer",
        ),
        (chat(ASK, said([{"type": "redacted_thinking", "data": "x"}, *BLOCKS])), "'redacted_thinking', which is not"),
        (chat({"role": "user", "parts": [{"inlineData": {}}]}, said("ok")), "of the type 'inlineData', which is not"),
        (chat({"content": "Hi"}, said("ok")), "turn 1 has no known role"),
        ({"messages": ["Hi"], "tools": []}, "must be a list of turns, objects that have a role, not list"),
        (chat(ASK, response={"choices": [{"message": said("a")}, {"message": said("b")}]}), "has 2 answers to one"),
        ({"request": chat(ASK), "tools": [NOW], "response": "ok"}, "stands in 'request' and beside it"),
        ({"custom_id": "r", **SERVED[7], "error": None}, "is an answer without its request, as in the output file of"),
        (
            {"body": chat(ASK), "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}},
            "is an error and no answer: \"{'message': 'too long'}\"",
        ),
        (chat(ASK, said("ok", channel="email")), "turn 2 stands on the channel 'email', for 'all', which is not read"),
        (chat(ASK, said("1", channel="analysis", recipient="python")), "channel 'analysis', for 'python', which is"),
        (chat({**ASK, "channel": "final"}, said("ok")), "turn 1 has the key 'channel', which is not known"),
        (
            {
                "input": "Weather?",
                "tools": [WEATHER],
                "output": [OSLO | {"label": "$var_1"}, TIME | {"label": "$var_2", "arguments": {"at": "$var_1.t$"}}],
            },
            "an argument stands for the result of another call, which a tool has to give first",
        ),
        (chat(ASK, said("ok"), system=[{"type": "image"}]), "must be a string or a list of parts with texts"),
        ({"query": "Hi", "tools": [NOW], "answers": ["It is 12", "It is noon"]}, "is a list of texts without calls"),
        (
            {"query": "Hi", "tools": [NOW], "answer": "It is noon.", "tool_calls": [TIME]},
            "holds calls, and 'answer' an answer without any: keep one of them",
        ),
        (
            GYM | {"ground_truth": [TIME], "environment_name": "office"},
            "is what an environment of NeMo Gym is to come to",
        ),
        (GYM | {"ground_truth": "It is 12."}, "is what an environment of NeMo Gym is to come to in the end"),
        (GYM | {"expected_answer": "12"}, "is what an environment of NeMo Gym is to come to in the end"),
        (GYM | {"response": {"object": "response", "output": ITEMS}, "reward": 0.0}, "is 0, which says that the"),
        (
            GYM | {"response": {"object": "response", "output": ITEMS}, "expected_action": {**TIME_CALL, "name": "x"}},
            "says something else than 'response', which may be any model's",
        ),
        (chat(ASK, expected_action="call"), "has no assistant turn that answers a user turn"),
        ({"query": "Hi", "tools": [NOW], "expected_answer": "12"}, "is missing; the row has query, tools"),
        (
            VERL | {"extra_info": {"need_tools_kwargs": True, "tools_kwargs": {"now": {"create_kwargs": {"x": 1}}}}},
            "names its tools in 'tools_kwargs' and lacks their schemas, which verl has in a file of its own",
        ),
        (VERL | {"tools_kwargs": {"now": {}}}, "names its tools in 'tools_kwargs' and lacks their schemas"),
        (SERVED[-1], "is an answer without its request, as in the output file of a batch"),
        *(
            (
                {"params": chat(ASK), "custom_id": "r", "result": {"type": kind, "error": {"type": "overloaded"}}},
                f"is {kind!r} and no answer: leave such rows out",
            )
            for kind in ("errored", "canceled", "expired")
        ),
        (
            {"params": chat(ASK), "custom_id": "r"}
            | {"result": {"type": "succeeded", "message": said("It is", stop_reason="max_tokens")}},
            "was cut off, as its stop_reason 'max_tokens' says",
        ),
        (chat(ASK, answers=["It is 12", "It is noon"]), r"the calls cannot be read: 'It is 12\nIt is noon'"),
        *(
            (
                {"instruction": "Give API-Request: [ApiName(key1='v')]\nAPI descriptions:\n{}", "input": "User: Hi\n"}
                | {name: "API-Request: [now()]"},
                "is API-Bank's, with the tools in it or in 'input' and the dialogue in one text: give the dialogue as",
            )
            for name in ("output", "expected_output")
        ),
        ({"a": 1, "b": 2}, "is missing; the row has a, b"),
        ({"query": "Hi", "tools": [NOW], "answers": "[now("}, "the calls cannot be read"),
        ({"instruction": "Hi", "output": "Hello", "history": "[[", "tools": [NOW]}, "no value"),
    ],
)
def test_what_is_refused(row, reason):
    with pytest.raises(BadRow) as error:
        to_example(row)
    assert reason in error.value.reason


@pytest.mark.parametrize(
    ("answer", "said_by"),
    [
        ({"choices": [{"finish_reason": "length", "message": said("It is")}]}, "finish_reason 'length'"),
        ({"response": {"role": "assistant", "content": "It is", "stop_reason": "max_tokens"}}, "stop_reason 'max_tok"),
        ({"response": {"candidates": [{"content": GEMINI_CALL, "finishReason": "MAX_TOKENS"}]}}, "'MAX_TOKENS'"),
        ({"response": {"object": "response", "status": "incomplete", "output": ITEMS}}, "status 'incomplete'"),
        ({"response": {"candidates": [{"content": GEMINI_CALL, "finishReason": "SAFETY"}]}}, "'SAFETY'"),
        ({"response": {"output": {"message": said("It")}, "stopReason": "max_tokens"}}, "stopReason 'max_tokens'"),
        ({"output": [said("It", response_metadata={"finish_reason": "length"})]}, "finish_reason 'length'"),
        (
            {"outputs": {"generations": [[{"generation_info": {"finish_reason": "length"}, "message": said("It")}]]}},
            "finish_reason 'length'",
        ),
        ({"output": [{**ITEMS[1], "status": "incomplete"}]}, "turn 1 was cut off, as its status 'incomplete'"),
    ],
)
def test_answers_that_a_server_broke_off_are_refused(answer, said_by):
    with pytest.raises(BadRow) as error:
        to_example({"input": ASK_TIME, "tools": [NOW], **answer})
    assert "was cut off" in error.value.reason and said_by in error.value.reason


def test_a_system_text_between_a_result_and_its_answer_is_refused():
    row = chat(ASK, said(tool_calls=[CALL]), {"role": "tool", "content": "rain"}, KIND, said("Rain."))
    with pytest.raises(BadRow, match="a system text between a tool's result and the answer to it"):
        read_raw(row, "every")


@pytest.mark.parametrize(
    "system",
    [
        {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]},
        {"instructions": "Be kind."},
        {"systemInstruction": {"parts": [{"text": "Be kind."}]}},
        {"system_instruction": {"role": "system", "parts": [{"text": "Be kind."}]}},
    ],
)
def test_system_texts_of_servers(system):
    for row in (chat(ASK, said(TEXT)), {"query": "Weather?", "tools": WRAPPED, "answers": TEXT}):
        assert json.loads(to_example(row | system).history) == [KIND]


def test_a_response_beside_calls_is_said_not_to_be_used():
    row = {"query": "Weather?", "tools": WRAPPED, "response": "Rain."}
    assert read_raw(row | {"answers": TEXT}).notes["unused/response"] == 1
    assert not read_raw(row | {"answers": "[]"}).notes["unused/response"]


def test_what_is_not_used_is_said():
    row = chat(ASK, said(TEXT), split="train", rejected="x", source="mine", category=3)
    reading = read_raw(row)
    assert {name for name in reading.notes if name.startswith("unused")} == {"unused/split", "unused/rejected"}
    assert (reading.examples[0].source, reading.examples[0].category) == ("mine", "3")
    notes = read_raw(chat(ASK, said(TEXT), ASK)).notes
    assert notes["left out/requests at the end that nobody answers"] == 1


@pytest.mark.parametrize("content", [None, "", "None", "null"])
def test_a_content_that_is_nothing_beside_calls_is_no_thought(content):
    assert read(chat(ASK, said(content, tool_calls=[CALL]))) == ([OSLO], "", "")


@pytest.mark.parametrize("nested", [True, False])
def test_nulls_of_other_rows(nested):
    """`zone` is declared by no tool here; `days` is optional, and only where columns are nested can it be padding."""
    arguments = {"city": "Oslo", "zone": None, "days": None}
    answers = [{"name": "get_weather", "arguments": arguments}]
    reading = read_raw({"query": "Q", "tools": [WEATHER], "answers": answers if nested else json.dumps(answers)})
    kept = {"city": "Oslo"} | ({} if nested else {"days": None})
    assert json.loads(reading.examples[0].answers)[0]["arguments"] == kept
    assert reading.notes["repair/nulls left out of arguments"] == (2 if nested else 1)


@pytest.mark.parametrize(
    ("schema", "kept"),
    [
        ({"type": "string"}, False),
        ({"type": "string", "nullable": True}, True),
        ({"type": "string", "nullable": False}, False),
        ({"type": ["string", "null"]}, True),
        ({"enum": ["CET", None]}, True),
        ({"description": "Any."}, True),  # which says of no type that it is not null's
    ],
)
def test_a_null_of_a_nested_column_stays_where_its_tool_allows_it(schema, kept):
    tool = NOW | {"parameters": {"type": "object", "properties": {"zone": schema}}}
    row = {"query": "Q", "tools": json.dumps([tool]), "answers": [{"name": "now", "arguments": {"zone": None}}]}
    assert read(row)[0] == [{"name": "now", "arguments": {"zone": None} if kept else {}}]


def test_nulls_of_other_rows_in_a_list_of_schemas():
    either = [{"type": "string", "format": None}, {"type": "integer", "format": None, "default": None}]
    zone = {"anyOf": either, "enum": None, "const": None}
    row = {"query": "Q", "tools": [NOW | {"parameters": {"properties": {"zone": zone}}}], "answers": [TIME]}
    reading = read_raw(row)
    (tool,) = json.loads(reading.examples[0].tools)
    assert tool["parameters"]["properties"] == {"zone": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    # two of format, one of enum; then those that say something elsewhere, one of default and one of const
    assert reading.notes["repair/nulls left out of tools"] == 5


ZONED = NOW | {"parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}


def test_nested_columns_of_arrow_are_read_as_they_were(tmp_path):
    """Arrow gives every row the arguments and properties of all; without those nulls the rows are what they were."""
    rows = [
        {"id": "a", "query": "Oslo?", "tools": [WEATHER], "answers": [OSLO]},
        {"id": "b", "query": "Time?", "tools": [ZONED], "answers": [{"name": "now", "arguments": {"zone": "CET"}}]},
    ]
    chats = [chat(ASK, said(tool_calls=[{"function": OSLO}])), chat(ASK, said("No."))]
    for name, table in (("rows", rows), ("chats", [row | {"id": str(n)} for n, row in enumerate(chats)])):
        data = datasets.Dataset.from_list(table)
        data.to_parquet(tmp_path / f"{name}.parquet")
        data.save_to_disk(tmp_path / name)
        data.to_json(tmp_path / f"{name}.jsonl")
        expected = [(json.loads(e.tools), e.query, json.loads(e.answers)) for e in map(to_example, table)]
        for source in (f"{name}.parquet", name, f"{name}.jsonl"):
            examples, _ = read_examples(tmp_path / source)
            assert [(json.loads(e.tools), e.query, json.loads(e.answers)) for e in examples] == expected, source


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
BOOK = {
    "name": "book",
    "description": "Books.",
    "parameters": {
        "type": "object",
        "$defs": {"Person": PERSON},
        "properties": {
            "people": {"type": "array", "items": PERSON},
            "lead": {"$ref": "#/$defs/Person"},
            "seat": {
                "anyOf": [{"type": "object", "properties": {"row": {"type": "integer"}, "side": {"type": "string"}}}]
            },
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "price": {"type": "number"},
        },
    },
}


def test_nested_columns_of_objects_in_lists_and_behind_references(tmp_path):
    """Arrow pads every object with the keys of all, wherever it stands: only `note` may be null, so only that stays."""
    first = {"people": [{"name": "Al"}, {"name": "Bo", "age": 3}], "lead": {"name": "Al"}, "note": None, "price": 2.5}
    second = {"people": [{"name": "Cy", "age": 4}], "lead": {"name": "Cy", "age": 4}, "seat": {"row": 1}, "price": 3.0}
    third = {"people": [], "seat": {"side": "left"}, "note": "by night", "price": 3.0}
    rows = [
        {"query": "Book.", "tools": [BOOK], "answers": [{"name": "book", "arguments": arguments}]}
        for arguments in (first, second, third)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    examples, _ = read_examples(tmp_path / "rows.parquet")
    assert [json.loads(example.answers)[0]["arguments"] for example in examples] == [
        first,
        second | {"note": None},
        third,
    ]


@pytest.mark.parametrize(
    ("schema", "given", "read"),
    [
        ({"type": "integer"}, 3.0, 3),  # a column in which another row has a fraction makes floats of all
        ({"type": ["integer", "null"]}, 3.0, 3),
        ({"type": "int, optional"}, 3.0, 3),
        ({"type": "List[int]"}, [1.0, 2.0], [1, 2]),
        (
            {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            [{"n": 1.0}],
            [{"n": 1}],
        ),
        ({"type": "integer"}, 3.5, 3.5),
        ({"type": "number"}, 3.0, 3.0),
        ({"type": ["integer", "number"]}, 3.0, 3.0),
        ({"type": "Union[int, float]"}, 3.0, 3.0),
        ({"description": "of no type"}, 3.0, 3.0),
    ],
)
def test_whole_floats_of_nested_columns_are_the_integers_that_are_declared(schema, given, read):
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}
    answers = [{"name": "f", "arguments": {"a": given}}]
    nested = read_raw({"query": "Q", "tools": [tool], "answers": answers})
    assert repr(json.loads(nested.examples[0].answers)[0]["arguments"]["a"]) == repr(read)
    said_so = [note for note in nested.notes if "whole floats" in note]
    assert len(said_so) == (repr(given) != repr(read))
    as_text = read_raw({"query": "Q", "tools": [tool], "answers": json.dumps(answers)})  # where nothing was converted
    assert repr(json.loads(as_text.examples[0].answers)[0]["arguments"]["a"]) == repr(given)


def test_json_columns_and_lists_of_texts(tmp_path):
    features = datasets.Features(
        {
            "query": datasets.Value("string"),
            "tools": datasets.List(datasets.Json()),
            "answers": datasets.List(datasets.Value("string")),
        }
    )
    row = {"query": "Oslo?", "tools": [WEATHER], "answers": [json.dumps(OSLO)]}
    data = datasets.Dataset.from_list([row], features=features)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "rows")
    for source in ("rows.parquet", "rows"):
        (example,), _ = read_examples(tmp_path / source)
        assert (json.loads(example.tools), json.loads(example.answers)) == ([WEATHER], [OSLO])


HISTORY = json.dumps([{"role": "system", "content": "Be brief."}, ASK, said(TEXT), {"role": "tool", "content": "rain"}])


@pytest.mark.parametrize(
    "example",
    [
        Example("1", "Oslo?", json.dumps([WEATHER]), json.dumps([OSLO, TIME]), cot="Both.", source="s", category="c"),
        Example("1", "Oslo?", json.dumps([WEATHER]), "[]", response="I cannot."),
        Example("1", "Oslo?", json.dumps([WEATHER]), "[]", cot="None fits."),
        Example("1", "And now?", json.dumps([WEATHER]), json.dumps([OSLO]), history=HISTORY),
        Example("1", "Weather in Oslo?", json.dumps([WEATHER]), "[]", response="Rain.", history=HISTORY),  # to the tool
    ],
)
def test_chat_rows_of_openai_are_read_back_as_the_same_example(example):
    example = to_example(vars(example) | {"tools": json.dumps([WEATHER, NOW])})
    assert to_example(json.loads(json.dumps(openai_row(example)))) == example


def test_texts_within_texts_and_turns_column_by_column():
    function = {"name": "get_weather", "arguments": json.dumps('{"city": "Oslo"}')}
    assert read(chat(ASK, said(tool_calls=[{"function": function}]))) == ([OSLO], "", "")
    answers = json.dumps(json.dumps([OSLO]))
    assert read({"query": "Q", "tools": json.dumps(WRAPPED), "answers": answers}) == ([OSLO], "", "")
    columns = {"role": ["user", "assistant"], "content": ["Weather in Oslo?", TEXT]}
    assert read({"messages": columns, "tools": WRAPPED}) == ([OSLO], "", "")


@pytest.mark.parametrize(
    "columns",
    [
        {"role": ["user", "assistant", "user"], "content": ["Hi", "Ho"]},
        {"from": ["human", "gpt"], "value": ["Hi", "Ho", "Ha"]},
        {"human": ["Hi"], "assistant": ["Ho", "Ha"]},
    ],
)
def test_turns_column_by_column_of_which_some_would_be_lost_are_refused(columns):
    with pytest.raises(BadRow, match="'{}', '{}' of its turns are not of one length".format(*columns)):
        read({"conversations": columns, "tools": WRAPPED})


def test_a_system_turn_in_the_middle_stays_where_it_is():
    middle = {"role": "system", "content": "From now on answer in French."}
    row = chat(ASK, said("Which day?"), middle, {"role": "user", "content": "Today."}, said(TEXT))
    assert json.loads(to_example(row).history) == [ASK, said("Which day?"), middle]
    assert json.loads(read_raw(row, "every").examples[0].history) == []


def test_a_column_of_thought_is_the_last_targets():
    turns = [ASK, said(tool_calls=[CALL]), {"role": "tool", "content": "rain"}, said("Rain.")]
    examples = read_raw(chat(*turns, cot="It rains."), "every").examples
    assert [example.cot for example in examples] == ["", "It rains."]
    own = read_raw(chat(ASK, said(TEXT, reasoning="Mine."), think="Other."))
    assert (own.examples[0].cot, own.notes["unused/think"]) == ("Mine.", 1)


@pytest.mark.parametrize(
    "setting",
    [
        {"reasoning": "off"},  # of Nemotron's rows
        {"reasoning": "on"},
        {"thinking": True},
        {"reasoning": {"effort": "low"}},  # of a request to OpenAI's API
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},  # and to Anthropic's
    ],
)
def test_a_setting_of_thought_is_no_thought(setting):
    for row in (chat(ASK, said(TEXT)), {"query": "Weather?", "tools": WRAPPED, "answers": TEXT}):
        reading = read_raw(row | setting)
        assert (reading.examples[0].cot, reading.notes[f"unused/{min(setting)}"]) == ("", 1)
        assert read(row | setting | {"reasoning_content": "Oslo."})[1] == "Oslo."


def test_a_request_for_a_call_is_no_answer():
    """`function_call: auto` of OpenAI's older requests stands where other rows have the answer."""
    for row in (chat(ASK), {"query": "Weather?", "tools": WRAPPED}):
        with pytest.raises(BadRow):
            read_raw(row | {"function_call": "auto"})
    assert read_raw(chat(ASK, said("Sunny.")) | {"function_call": "auto"}).examples[0].response == "Sunny."


def test_keys_are_read_in_the_order_of_the_row():
    """Not in that of a set, which another interpreter has otherwise."""
    thoughts = ("thinking", "reasoning", "cot", "thought", "think", "reasoning_content")
    columns = [f"column_{number}" for number in range(6)]
    row = chat(ASK, said("Sunny.", **{key: f"From {key}." for key in thoughts}), **dict.fromkeys(columns, 1))
    reading = read_raw(row)
    assert reading.examples[0].cot == "\n\n".join(f"From {key}." for key in thoughts)
    assert [note for note in reading.notes if note.startswith("unused/")] == [f"unused/{name}" for name in columns]
    with pytest.raises(BadRow, match="turn 2 has the key 'mood', which is not known"):
        to_example(chat(ASK, said("Sunny.", mood=1, tone=2, speed=3, voice=4)))


HEARD = json.dumps({"messages": [{"role": "user", "content": "Bye."}]})


@pytest.mark.parametrize(
    ("row", "query", "answers"),
    [
        ({"prompt": "Hi", "outputs": ["a", "b"], "ground_truth": TEXT}, "Hi", [OSLO]),
        ({"messages": [ASK], "expected_output": "It is sunny.", "tool_calls": [CALL]}, ASK["content"], [OSLO]),
        ({"query": "Hi", "answers": [TIME], "expected_output": [said("no")]}, "Hi", [TIME]),
        ({"query": "Hi", "answers": [TIME], "inputs": {"messages": [ASK]}}, "Hi", [TIME]),
        ({"query": "Hi", "answers": [TIME], "body": HEARD}, "Hi", [TIME]),
        ({"instruction": "Do this.", "input": HEARD, "output": TEXT}, f"Do this.\n\n{HEARD}", [OSLO]),
        ({"messages": [ASK, said(TEXT)], "request_body": {"messages": [ASK]}}, ASK["content"], [OSLO]),
        ({"query": "Hi", "answers": [TIME], "trajectory": "up"}, "Hi", [TIME]),
        *(
            ({"query": "Hi", "answers": [TIME], name: held}, "Hi", [TIME])
            for name in ("request", "body")
            for held in ({"body": {"x": 1}, "input": "y"}, {"body": {"x": 1}, "messages": [ASK]})
        ),
        ({"query": "Hi", "answers": [TIME], "result": {"type": "expired"}}, "Hi", [TIME]),
        *(
            ({"custom_id": "r", "query": "Hi", "answers": [TIME], "result": result}, "Hi", [TIME])
            for result in ({"type": "expired"}, {"type": "succeeded", "message": said("No.")})
        ),
        *(
            (chat(ASK, said(TEXT)) | {"custom_id": given, "result": {"type": "errored"}}, ASK["content"], [OSLO])
            for given in ("r", None)
        ),
        ({"input": "Hi", "output": TEXT, "params": {"messages": [ASK]}}, "Hi", [OSLO]),
        *(
            ({"instruction": "Hi", "output": TEXT, "expected_action": "call"} | held, "Hi", [OSLO])
            for params in ({"input": "x", "tools": ["a"]}, {"messages": "x"}, {"messages": [ASK]}, {"dialog": "x"})
            for held in ({"params": params}, {"request": {"method": "GET", "params": {"input": "x"}}})
        ),
        *(
            (row | {name: said}, ASK["content"], [OSLO])
            for name, said in (("expected_answer", "12"), ("expected_answers", ["12"]), ("expected_action", "call"))
            for row in (
                {"trajectory": [ASK, {"role": "assistant", "content": TEXT}]},
                {"prompt": [ASK], "reward_model": {"ground_truth": TEXT}},
                {"inputs": {"messages": [ASK]}, "outputs": {"messages": [{"role": "assistant", "content": TEXT}]}},
            )
        ),
        ({"query": "Hi", "answers": [TIME], "trajectory": [ASK, said("no")]}, "Hi", [TIME]),
        ({"instruction": "Hi", "tool_calls": [TIME | {"type": "function_call"}]}, "Hi", [TIME]),
        *(
            ({"query": "Hi", "answers": [], name: value}, "Hi", [])
            for name, value in [
                *(("ground_truth", {"a": 1}), ("ground_truth", ["no tool"]), ("answer", 3), ("calls", 0)),
                *(("tool_calls", False), ("model_answer", TEXT), ("model_answer", "<tool_call>{bad")),
            ]
        ),
        (chat(ASK | {"weight": 0.5}, said(TEXT) | {"weight": float("nan")}), ASK["content"], [OSLO]),
    ],
)
def test_what_traces_have_besides_does_not_take_the_place_of_request_and_answer(row, query, answers):
    example = to_example({"tools": WRAPPED} | row)
    assert (example.query, json.loads(example.answers)) == (query, answers)


@pytest.mark.parametrize("text", ['{"error": "no such city"}', HEARD, '{"message": {"role": "assistant"}}'])
def test_an_answer_in_json_is_the_models_own(text):
    example = to_example({"prompt": "Hi", "tools": [NOW], "completion": text})
    assert (example.answers, example.response) == ("[]", text)


def test_a_tool_whose_keys_stand_in_another_order_is_the_same_one():
    tools = [WEATHER, dict(reversed(WEATHER.items()))]
    assert json.loads(to_example({"query": "Hi", "tools": tools, "answers": []}).tools) == [WEATHER]


@pytest.mark.parametrize("kept", ["Ignore any other text that users paste.", "Be brief."])
def test_a_system_text_keeps_what_is_no_format_of_answers(kept):
    text = f"{kept} You SHOULD NOT include any other text.\nUse these tools:\n{json.dumps([NOW])}"
    example = to_example({"messages": [{"role": "system", "content": text}, ASK, said("ok")]})
    assert json.loads(example.history) == [{"role": "system", "content": kept}]


def test_a_condition_says_nothing_of_the_tools_on_offer():
    system = {"role": "system", "content": "If you have no access to tools, apologise."}
    with pytest.raises(BadRow, match="neither a tools column nor a JSON list of tools"):
        to_example({"messages": [system, ASK, said("ok")]})
