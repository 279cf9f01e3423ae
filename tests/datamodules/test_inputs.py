"""The kinds of input that users were seen to bring: what each file of them is read as, or why it cannot be known."""

import json
import unicodedata
from pathlib import Path

import pytest

from datamodules.example import BadRow
from datamodules.readers import read_rows
from datamodules.rows import read_raw, unchecked_example
from datamodules.xlam import check_rows

INPUTS = Path(__file__).resolve().parents[3] / "shared" / "inputs"
WEATHER = "What is the weather in Oslo?"
LOOKED = "words before the calls read as chain of thought"
REPLACED = "system texts that held the tools replaced by ours"


def call(name="get_weather", **arguments):
    return {"name": name, "arguments": arguments}


OSLO, BERGEN = call(city="Oslo"), call(city="Bergen")
A, F_OSLO = call("f", x="a"), call("f", city="Oslo")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def tool(text):
    return {"role": "tool", "content": text}


def system(text):
    return {"role": "system", "content": text}


def row(query=WEATHER, answers=(OSLO,), cot="", response="", history=(), repairs=(), tools=None):
    return {
        "query": query,
        "answers": list(answers),
        "cot": cot,
        "response": response,
        "history": list(history),
        "repairs": set(repairs),
        "tools": tools,
    }


POLICY = "Policy: never book without consent. Today is 2024-05-12."
ASKED_BERGEN = [user("What is the weather in Bergen?"), assistant("[get_weather(city='Bergen')]"), tool("rain")]
ASKED_OSLO = [user(WEATHER), assistant("[get_weather(city='Oslo')]"), tool("rain")]
DO_IT = [call("f", x="Oslo")]
F_HISTORY = [user("Weather in Bergen?"), assistant("[f(x='Bergen')]"), tool("rain"), assistant("Rain.")]
EXPECTED = {
    "01_openai_tool_calls_null.jsonl": [row(tools=["get_weather"])],
    "01b_openai_tool_calls_null_flat_tools.jsonl": [row(tools=["get_weather"])],
    "02_text_beside_tool_calls.jsonl": [row(cot="Let me look that up.", repairs=[LOOKED])],
    "02c_history_tool_calls.jsonl": [row("And in Oslo?", history=[*ASKED_BERGEN, assistant("Rain.")])],
    "03_text_before_tool_call_tag.jsonl": [row(cot="I will check.", repairs=[LOOKED])],
    "04_call_TOOLCALL.jsonl": [row(tools=["get_weather", "Weather Lookup"])],
    "04_call_args_string.jsonl": [row()],
    "04_call_fence_py.jsonl": [row()],
    "04_call_glaive.jsonl": [row()],
    "04_call_glm45.jsonl": [row()],
    "04_call_lines.jsonl": [row(answers=[OSLO, BERGEN])],
    "04_call_llama_function_tag.jsonl": [row()],
    "04_call_llama_json_parameters.jsonl": [row()],
    "04_call_mistral.jsonl": [row()],
    "04_call_phi4.jsonl": [row()],
    "04_call_qwen3coder.jsonl": [row()],
    "04_call_qwenagent.jsonl": [row()],
    "04_call_semicolon.jsonl": [row(answers=[OSLO, BERGEN])],
    "04_call_toolace_space.jsonl": [row(answers=[call("Weather Lookup", city="Oslo")])],
    "04_call_trailing_comma.jsonl": [row()],
    "05_openai_tools_wrapper.jsonl": [row(tools=["get_weather"])],
    # The call is of a function that the system's list does not offer: which was meant cannot be known.
    "06_toolace_system_column.jsonl": ["calls 'get_weather', which is not among the tools offered"],
    "07_tools_one_per_line.jsonl": [row(repairs=[REPLACED], tools=["get_weather", "now"])],
    "07c_hermes_list_pythonrepr.jsonl": [row(repairs=[REPLACED], tools=["get_weather"])],
    "08_ms_swift_roles.jsonl": [row()],
    "09b_role_developer.jsonl": [row(history=[system("Be brief.")])],
    "10_reasoning_content_in_message.jsonl": [row(cot="They want Oslo.")],
    "11_no_open_think.jsonl": [row(cot="They want Oslo.")],
    "13_system_column.jsonl": [
        row("How is the weather tomorrow in Oslo?", [call(city="Oslo", days=1)], history=[system(POLICY)])
    ],
    "14_arguments_string.jsonl": [row()],
    "15_no_args_empty_string.jsonl": [row("What time is it?", [call("now")])],
    "15_no_args_missing.jsonl": [row("What time is it?", [call("now")])],
    "15_no_args_type.jsonl": [row("What time is it?", [call("now")])],
    "16_tools_as_strings.jsonl": [row(answers=[], response="I cannot do that.", tools=["get_weather"])],
    "17_content_parts.jsonl": [row()],
    "19_nfd.jsonl": [row("Do it.", [call("f", x=unicodedata.normalize("NFD", "café Ngữ"))], cot="c")],
    # 19,509 characters as a model writes them are more than the parser of completions takes.
    "21_long_code.jsonl": ["is 19,509 characters long as a model writes it, and the parser reads 16,384 at most"],
    "23_refine_required_true.jsonl": [row("Weather in Oslo?", [F_OSLO], cot="f: city='Oslo'")],
    "23c_refine_boolean_property.jsonl": [row("Weather in Oslo?", [F_OSLO], cot="f: city='Oslo'")],
    "23d_refine_null_padded.jsonl": [
        row("Weather in Oslo?", [F_OSLO], cot="f: city='Oslo'", repairs=["nulls left out of tools"])
    ],
    "23f_refine_flat_required_false.jsonl": [row("Weather in Oslo?", [F_OSLO], cot="f: city='Oslo'")],
    "23g_refine_additional_properties.jsonl": [row("Weather in Oslo?", [F_OSLO], cot="f: city='Oslo'")],
    "24_refine_list_as_json_string.jsonl": [
        row(
            'Weather in Oslo and Bergen: ["Oslo", "Bergen"]?',
            [call("f", cities='["Oslo", "Bergen"]')],
            cot='f: cities=\'["Oslo", "Bergen"]\'',
        )
    ],
    "25b_refine_two_tool_call_blocks_with_text.jsonl": [
        row(
            "Weather in Oslo and in Bergen?",
            [F_OSLO, call("f", city="Bergen")],
            cot="Oslo and Bergen: f twice.\n\nI will check.",
            repairs=[LOOKED],
        )
    ],
    "28_tool_history_row_2.jsonl": [
        row("Do it 1.", DO_IT, cot="c"),
        row("Do it 2.", DO_IT, cot="c", history=F_HISTORY),
        row("Do it 3.", DO_IT, cot="c"),
        row("Do it 4.", DO_IT, cot="c"),
    ],
    "36_object.json": [row("Do it.", [A], cot="c")],
    "37_messages_json_string.jsonl": [row()],
    "39b_float_ids.jsonl": [row("Do it.", [A], cot="c")],
    "41_parallel_consecutive_turns.jsonl": [row("Weather in Oslo and in Bergen?", [OSLO, BERGEN])],
    "42_think_turn_then_call.jsonl": [row(cot="They want Oslo.")],
    "43_ends_with_thanks.jsonl": [
        row("Thanks!", [], response="You are welcome!", history=[*ASKED_OSLO, assistant("Rain.")])
    ],
    "45c_answer_alias_null_answers.jsonl": [row("Do it.", [A], cot="c")],
    "45d_extra_call_keys.jsonl": [row("Do it.", [A], cot="c")],
    "46_null_padded_export.jsonl": [
        row("Weather in Oslo?", repairs=["nulls left out of tools", "nulls left out of arguments"]),
        row(
            "Time in CET?",
            [call("now", zone="CET")],
            repairs=["nulls left out of tools", "nulls left out of arguments"],
        ),
    ],
    "47_text_answers.jsonl": [
        row("Book a table.", [], cot="No tool books tables.", response="I cannot book tables."),
        row("Book a table.", [], cot="No tool.", response="I cannot book tables."),
    ],
    "48_cot_null_think_filled.jsonl": [row(cot="They want Oslo.")],
    "49_messages_null_xlam_row.jsonl": [row()],
    "50_prompt_completion.jsonl": [row()],
    "50b_glaive_v2.jsonl": [row(repairs=[REPLACED], tools=["get_weather"])],
    "55_python_repr_tools_column.jsonl": [row(tools=["get_weather"])],
    # Not rows but a model's settings.
    "generation_config_llama2_style.json": ["is missing; the row has _from_model_config, eos_token_id"],
}


@pytest.fixture(scope="module")
def inputs():
    if not INPUTS.is_dir():
        pytest.skip(f"the inputs are not here: {INPUTS} is absent")
    return INPUTS


def shown(reading):
    (example,) = reading.examples
    return {
        "query": example.query,
        "answers": json.loads(example.answers),
        "cot": example.cot,
        "response": example.response,
        "history": json.loads(example.history),
        "repairs": {name.partition("/")[2] for name in reading.notes if name.startswith("repair/")},
        "tools": [tool["name"] for tool in json.loads(example.tools)],
    }


def test_every_file_has_its_expectation(inputs):
    assert {file.name for file in inputs.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_file(inputs, name):
    raw = [line for _, line in read_rows(str(inputs / name))]
    assert len(raw) == len(EXPECTED[name])
    for line, expected in zip(raw, EXPECTED[name], strict=True):
        if isinstance(expected, str):
            with pytest.raises(BadRow) as error:
                read_raw(line)
            assert expected in error.value.reason
            continue
        found = shown(read_raw(line))
        if expected["tools"] is None:
            found["tools"] = None
        assert found == expected
        assert unchecked_example(line).query == expected["query"]  # what a refinement sees


def test_a_call_not_offered_and_an_unknown_row_are_all_that_is_refused_of_the_forms():
    refused = {name for name, rows in EXPECTED.items() if isinstance(rows[0], str)}
    assert refused == {
        "06_toolace_system_column.jsonl",
        "21_long_code.jsonl",
        "generation_config_llama2_style.json",
    }


def test_ids_of_float_columns_are_those_of_integers(inputs):
    ((_, example, _),) = check_rows(read_rows(str(inputs / "39b_float_ids.jsonl")))
    assert example.id == "1"


def test_every_turn_of_a_chat_that_ends_with_thanks(inputs):
    ((_, line),) = read_rows(str(inputs / "43_ends_with_thanks.jsonl"))
    reading = read_raw(line, "every")
    assert [(e.query, json.loads(e.answers), e.response, json.loads(e.history)) for e in reading.examples] == [
        (WEATHER, [OSLO], "", []),
        (WEATHER, [], "Rain.", ASKED_OSLO),
        ("Thanks!", [], "You are welcome!", [*ASKED_OSLO, assistant("Rain.")]),
    ]
    assert not any(name.startswith("left out") for name in reading.notes)
    assert read_raw(line).notes["left out/assistant turns that are no target"] == 2


def test_all_real_rows_are_read(shared_data):
    outcomes = list(check_rows(read_rows(str(shared_data / "real_calls.jsonl"))))
    assert len(outcomes) == 5844
    assert [outcome for _, outcome, _ in outcomes if isinstance(outcome, BadRow)] == []
