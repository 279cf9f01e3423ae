"""Tests see no GPU unless they are told to: on several of them Lightning would start pytest once for each."""

import os
import runpy
from pathlib import Path

CONFTEST = str(Path(__file__).parent / "conftest.py")


def test_gpus_are_hidden_from_tests_and_from_what_they_start(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("FUNREASON_GPU_TESTS", raising=False)
    runpy.run_path(CONFTEST)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_variable_shows_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("FUNREASON_GPU_TESTS", "1")
    runpy.run_path(CONFTEST)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
