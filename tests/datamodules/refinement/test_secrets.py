"""No key or password leaves the process, whatever a server says back and wherever it stood in the settings."""

import json
from pathlib import Path

import pytest
from stub_server import YES, Stub

from datamodules.refinement.cli import main
from datamodules.system import redaction

KEY, PASSWORD, OTHER = "quite-a-secret-1", "pass-word-9", "of-the-body-7"
ECHO = f"Incorrect API key provided: {KEY} (Authorization: Bearer {KEY}; {PASSWORD}, {OTHER}) {'x' * 437}{KEY}"
"""What a server says: the first 500 characters end within the last key."""


@pytest.fixture(autouse=True)
def judge_key(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(redaction, "_kept", set())
    monkeypatch.setenv("JUDGE", KEY)  # a name that does not say what it holds


def refusal(status):
    return (status, [], json.dumps({"error": {"message": ECHO}}).encode())


@pytest.fixture
def refine(tmp_path, write_rows, make_row, capfd):
    """Refine four rows with a judge behind a stub; gives the exit code, and all that was written or printed."""
    rows = write_rows([make_row(number) for number in range(1, 5)])

    def run(stub, **settings):
        settings = {
            "model": "m",
            # The client takes no password beside a key, so that no question reaches the second.
            "servers": [stub.url, stub.url.replace("http://", f"http://user:{PASSWORD}@")],
            "extra_body": {"api_key": OTHER},
            "api_key_env": "JUDGE",
            "patience": 0.5,
            "retries": 0,
        } | settings
        judge = {"class_path": "datamodules.refinement.OpenAIJudge", "init_args": settings}
        options = {"judges": json.dumps([judge]), "data.path": rows, "output_dir": tmp_path / "run"}
        code = None
        try:
            main(["--config", "configs/refine.yaml", *(f"--{key}={value}" for key, value in options.items())])
        except SystemExit as end:
            code = end.code
        files = {path.name: path.read_text(errors="replace") for path in (tmp_path / "run").glob("*.*")}
        printed = capfd.readouterr()
        return code, files | {"out": printed.out, "err": printed.err, "code": str(code)}

    return run


def clean(texts):
    return [name for name, text in texts.items() for secret in (KEY, KEY[:12], PASSWORD, OTHER) if secret in text] == []


def test_what_a_server_says_back_reaches_no_file(refine):
    def behave(number, body):
        return refusal(400) if "City 3" in body["messages"][0]["content"] else YES

    with Stub(behave) as stub:
        code, texts = refine(stub)
        assert code is None and clean(texts)
        assert "Incorrect API key provided: <secret>" in json.loads(texts["rejected.jsonl"])["judge"]
        assert "Incorrect API key provided&#58; &lt;secret&gt;" in texts["report.md"]
        assert "http://user:<secret>@127.0.0.1" in texts["config.yaml"] and "api_key: <secret>" in texts["config.yaml"]
        asked = len(stub.asked)
        for again in ({}, {"extra_body": {"api_key": "a-new-one"}}):  # a key is no part of what a run is
            assert refine(stub, **again)[0] is None and len(stub.asked) == asked


@pytest.mark.parametrize("status", [400, 401, 500])
def test_nor_the_sentence_that_ends_the_run(status, refine):
    with Stub(lambda number, body: refusal(status)) as stub:
        code, texts = refine(stub)
    assert code.startswith("error: ") and f"({status})" in code
    texts.pop("journal.sqlite")  # of this machine, while the run is not finished
    assert clean(texts)


def test_a_saved_setting_without_its_secret_is_asked_for(refine):
    with Stub() as stub:
        code, _ = refine(stub, servers=["http://user:<secret>@127.0.0.1/v1"])
    assert "servers: http://user:<secret>@127.0.0.1/v1 was saved without its secret; give" in code and not stub.asked
