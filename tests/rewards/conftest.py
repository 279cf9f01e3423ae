"""The official checker of BFCL, from the installed wheel, as an oracle."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


class AnyModel(dict):
    """Stands for the table of models: whichever it is, dots in its function names stay."""

    def __missing__(self, key):
        return SimpleNamespace(underscore_to_dot=False)


@pytest.fixture(scope="session")
def bfcl_package():
    spec = find_spec("bfcl_eval")
    if spec is None:
        pytest.skip("bfcl-eval is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def official(bfcl_package):
    """What the official package checks, converts and decodes with, imported without the SDKs that it asks for."""
    models = ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = AnyModel()
    tenacity = ModuleType("tenacity")
    tenacity.retry = tenacity.retry_if_exception_message = tenacity.retry_if_exception_type = None
    tenacity.wait_random_exponential = None
    stubs = {"bfcl_eval.constants.model_config": models, "tenacity": tenacity}
    absent = {name: stub for name, stub in stubs.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
        handler = importlib.import_module("bfcl_eval.model_handler.utils")
        utils = importlib.import_module("bfcl_eval.utils")
        java = importlib.import_module("bfcl_eval.eval_checker.ast_eval.type_convertor.java_type_converter")
        javascript = importlib.import_module("bfcl_eval.eval_checker.ast_eval.type_convertor.js_type_converter")
    finally:
        for name in absent:
            del sys.modules[name]

    def check(functions, calls, answers, language, category):
        """Whether the official checker accepts the calls; an exception, which would end its run, is a no."""
        try:
            return checker.ast_checker(functions, calls, answers, language, category, "any")["valid"]
        except Exception:
            return False

    return SimpleNamespace(
        check=check,
        convert={"java": java.java_type_converter, "javascript": javascript.js_type_converter},
        decode=handler.default_decode_ast_prompting,
        is_calls=utils.is_function_calling_format_output,
    )


@pytest.fixture(scope="session")
def bfcl_rows(bfcl_package):
    """(category, official name of its language, functions, ground truth) of every row that has a ground truth."""
    rows = []
    for file in sorted((bfcl_package / "data" / "possible_answer").glob("BFCL_v3_*.json")):
        category = file.stem.removeprefix("BFCL_v3_")
        if "multi_turn" in category:
            continue
        language = {"java": "Java", "javascript": "JavaScript"}.get(category, "Python")
        questions = [json.loads(line) for line in (bfcl_package / "data" / file.name).open(encoding="utf-8")]
        answers = [json.loads(line) for line in file.open(encoding="utf-8")]
        for question, answer in zip(questions, answers, strict=True):
            assert question["id"] == answer["id"]
            rows.append((category, language, question["function"], answer["ground_truth"]))
    return rows
