"""Files of answers: the official layout, damaged lines, answers of earlier runs."""

import json

import pytest

from datamodules.bfcl.package import BFCLPackage
from lightning_modules.bfcl.results import (
    SETTINGS,
    earlier_results,
    read_results,
    result_file,
    result_folder,
    write_results,
)

V3, V4 = BFCLPackage(None, "2025.8.6.2"), BFCLPackage(None, "2026.3.23")
LINES = [{"id": "java_0", "result": "[f()]"}, {"id": "java_1", "result": "é"}]


def test_official_places(tmp_path):
    first, second = result_folder(tmp_path, 0), result_folder(tmp_path, 1)
    assert [folder.name for folder in (first, second)] == ["result", "result-2"]
    places = [
        result_file(first, V3, "Qwen/Qwen3-8B", "live_simple"),
        result_file(first, V4, "Qwen/Qwen3-8B", "live_simple"),
        result_file(first, V4, "Qwen/Qwen3-8B", "simple_java"),
    ]
    assert [str(place.relative_to(tmp_path)) for place in places] == [
        "result/Qwen_Qwen3-8B/BFCL_v3_live_simple_result.json",
        "result/Qwen_Qwen3-8B/live/BFCL_v4_live_simple_result.json",
        "result/Qwen_Qwen3-8B/non_live/BFCL_v4_simple_java_result.json",
    ]


def test_written_lines_are_read_back(tmp_path):
    file = tmp_path / "deep" / "file.json"
    assert read_results(file, ["java_0"]) == {}
    write_results(file, LINES)
    assert read_results(file, ["java_0", "java_1", "java_2"]) == {line["id"]: line for line in LINES}
    assert file.read_bytes().isascii()  # the official scorer reads it in whatever encoding the machine prefers
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    "text, what",
    [
        ('{"id": "java_0", "result": "[f()]"}\n{"id": "java_1", "res', "line 2 is not a whole result of one of its"),
        ('{"id": "java_0"}', "line 1 is not a whole result"),
        ('{"id": "java_7", "result": ""}', "line 1 is not a whole result"),
        ('{"id": "java_0", "result": ["x"]}', "line 1 is not a whole result"),
        ('{"id": [], "result": ""}', "line 1 is not a whole result"),
        ("[]", "line 1 is not a whole result"),
        ('{"id": "java_0", "result": ""}\n{"id": "java_0", "result": ""}', "line 2 repeats row java_0"),
    ],
)
def test_damaged_files(tmp_path, text, what):
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"file.json, {what}.*: delete the line, and its row is answered again"):
        read_results(file, ["java_0", "java_1"])


def test_earlier_answers_are_those_given_under_the_same_settings(tmp_path):
    settings, ids = {"samples": 2, "seed": 0}, {"java": ["java_0", "java_1"], "simple": ["simple_0"]}
    runs = [("version_0", settings, 0, LINES[0]), ("version_1", settings, 0, LINES[1]),
            ("version_2", settings, 1, LINES[0]), ("version_3", settings | {"seed": 1}, 1, LINES[1])]  # fmt: skip
    for name, theirs, sample, line in runs:
        write_results(result_file(result_folder(tmp_path / name, sample), V3, "a/b", "java"), [line])
        (tmp_path / name / SETTINGS).write_text(json.dumps(theirs))
    first, second = earlier_results(tmp_path, settings, V3, "a/b", ids)
    assert list(first) == ["java_0", "java_1"] and list(second) == ["java_0"]
