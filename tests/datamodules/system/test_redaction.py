"""Secrets never reach what is written or printed, and what only looks a little like one does."""

import pytest
from jsonargparse import Namespace

from datamodules.system import redaction
from datamodules.system.redaction import MASK, keep_secret, keep_secrets_of, redact, redact_settings, refuse_masked

LONG = "abcdefghij0123456789"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(redaction, "_kept", set())


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://user:pa@ss@host:80/v1 fails", f"http://user:{MASK}@host:80/v1 fails"),
        (f"https://{LONG}@host/x", f"https://{MASK}@host/x"),
        ("https://h/v1?api-key=abc&x=1", f"https://h/v1?api-key={MASK}&x=1"),
        ("https://h/v1?x=1&key=abc, again", f"https://h/v1?x=1&key={MASK}"),  # a comma may be part of the key
        ("https://h/f?X-Amz-Credential=a/b&X-Amz-Signature=0f", f"https://h/f?X-Amz-Credential={MASK}&X-Amz-Signature={MASK}"),
        ("Authorization: Bearer hunter22", f"Authorization: Bearer {MASK}"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", f"{{'authorization': 'Basic {MASK}'}}"),
        ("sent Bearer tok-12345678", f"sent Bearer {MASK}"),
        ("{'api_key': 'abcd12345678'}", f"{{'api_key': '{MASK}'}}"),
        (f"wrong key sk-proj-{LONG}-x_y!", f"wrong key {MASK}!"),
        (f"hf_{LONG} and ghp_{LONG}", f"{MASK} and {MASK}"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_masked_once(text, left):
    masked = redact(text)
    assert masked.startswith(left) and redact(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-ab***yz. You can find your API key at https://h/account/api-keys.",
        'Parser key "trainer.logger.init_args.api_key": the following is required',
        "max_tokens: 4096, max_tokens_key=max_completion_tokens, seed=1234567890",
        "http://localhost:8000/v1?model=3&max_tokens=5 from git@host",
        "password: required; basic authentication failed",
        "rows of sk-learn-dataset-2024-version-of-x and s3://bucket/a@b",
    ],
)
def test_what_does_not_is_left(text):
    assert redact(text) == text


def test_secrets_that_are_known_are_masked_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "from the environment")
    monkeypatch.setenv("PATH_OF_A_KEY", "/usr/bin")  # a path, and a setting of many runs
    monkeypatch.setenv("OTHER_KEY", "EMPTY")  # what servers of one's own are given
    monkeypatch.setenv("DB_PASSWORD", "8letters")
    monkeypatch.setenv("SHORT_SECRET", "7lettrs")  # which words may hold
    monkeypatch.setenv("MODEL_NAME", "Qwen3-Large")
    keep_secrets_of({"judges": [{"api_key": "of a setting", "api_key_env": "NAME_OF_IT"}]})
    keep_secret("6lettr")
    keep_secret(" 5let ")
    keep_secret("a/b c+d")
    keep_secrets_of("http://user:hunter2@h/v1?sig=s%2Fi%2Fg1")
    keep_secret(None)
    said = "from the environment, 8letters, of a setting, 6lettr, a/b c+d, a%2Fb%20c%2Bd, hunter2, s/i/g1"
    left = "/usr/bin, EMPTY, 7lettrs, Qwen3-Large, NAME_OF_IT, 5let"
    assert redact(f"{said}, {left}") == f"{', '.join([MASK] * 8)}, {left}"


SETTINGS = {
    "api_key": "x",
    "judges": [{"servers": ["http://u:pw@h"], "api_key_env": "KEY", "max_tokens_key": "max_tokens"}],
    "extra_headers": {"X-API-Key": "q", "Authorization": "r"},
    "tokenizer": "t",
    "eos_token": "</s>",
    "hf_token": "y",
    "password": None,
    "seed": 3,
}
SAVED = SETTINGS | {
    "api_key": MASK,
    "judges": [{"servers": [f"http://u:{MASK}@h"], "api_key_env": "KEY", "max_tokens_key": "max_tokens"}],
    "extra_headers": {"X-API-Key": MASK, "Authorization": MASK},
    "hf_token": MASK,
}


def test_settings_keep_their_form():
    assert redact_settings(SETTINGS) == redact_settings(SAVED) == SAVED
    assert redact_settings(Namespace(a=[Namespace(token="x", n=1)])) == Namespace(a=[Namespace(token=MASK, n=1)])


def test_saved_settings_are_refused_until_the_secret_is_given_again():
    refuse_masked(SETTINGS)
    with pytest.raises(ValueError, match=r"api_key: <secret> was saved without its secret; give the whole value"):
        refuse_masked(SAVED)
    with pytest.raises(ValueError, match=r"judges\.servers: http://u:<secret>@h was"):
        refuse_masked(Namespace(judges=[Namespace(servers=SAVED["judges"][0]["servers"])]))
