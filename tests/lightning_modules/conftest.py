"""A small file of rows, and runs of the real command line on the tiny model."""

import json
import random
import signal

import pytest

CITIES = ["Paris", "Oslo", "Lima", "Rome", "Cairo", "Quito"]


def tool(name, **types):
    parameters = {p: {"type": t, "description": p, "required": True} for p, t in types.items()}
    return {"name": name, "description": name, "parameters": parameters}


def make_rows(count):
    """Rows of every category but parallel_multiple, deterministic."""
    rng = random.Random(0)
    weather, clock = tool("get_weather", city="str", days="int"), tool("get_time", city="str")
    rows = []
    for i in range(count):
        city, days = rng.choice(CITIES), rng.randrange(1, 9)
        call = {"name": "get_weather", "arguments": {"city": city, "days": days}}
        tools, answers, cot = [weather], [call], f"{city}, {days} days: get_weather fits."
        if i % 4 == 1:
            tools = [weather, clock]
        elif i % 4 == 2:
            answers = [call, {"name": "get_weather", "arguments": {"city": "Bonn", "days": 1}}]
        elif i % 4 == 3:
            answers, cot = [], "No tool fits." * rng.randrange(1, 4)
        query = f"Request {i}: weather in {city}, {days} days"
        rows.append(
            {"id": str(i), "query": query, "tools": json.dumps(tools), "answers": json.dumps(answers), "cot": cot}
        )
    return rows


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(24)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def base_args(tmp_path_factory, tiny_model_dir, rows_file):
    """Options that make any shipped experiment small: tiny model, few rows, short completions."""
    cache = tmp_path_factory.mktemp("cache")

    def args(root, **options):
        options = {
            "model.init_args.init_from": tiny_model_dir,
            "model.init_args.generator": "lightning_modules.generators.HFGenerator",
            "model.init_args.generator.init_args.max_new_tokens": 8,
            "data.init_args.path": rows_file,
            "data.init_args.cache_dir": cache,
            "trainer.default_root_dir": root,
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
        } | options
        return [f"--{key}={value}" for key, value in options.items()]

    return args


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    own = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, own)
