"""Secrets kept out of what is written and printed: saved settings, errors, reports, tracebacks."""

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from jsonargparse import Namespace

MASK = "<secret>"
"""What is written in the place of a secret."""

SHORTEST, SHORTEST_FOUND = 6, 8  # characters of a secret that is kept (EMPTY is none), and of one of the environment
_SECRET = (
    r"(?:[\w.-]{0,40}[_.-])?(?:(?:api|access|private|secret|subscription)[_-]?key|secret|passw(?:or)?d|passphrase"
    r"|(?:proxy-)?authorization|credentials?)|(?:[\w.-]{0,40}[_-])?(?:api|auth|access|refresh|bearer|security|hf|hub)"
    r"[_-]token|token"
)
_SETTING = re.compile(_SECRET, re.IGNORECASE)
_VARIABLE = re.compile(r"KEY$|TOKEN$|SECRET|PASSW|PASSPHRASE|CREDENTIAL", re.IGNORECASE)
_SCHEME = r"(\b[a-z][a-z0-9+.-]{0,20}://"
_IN_URLS = [  # each: a group that stays, and the secret
    _SCHEME + r"[^\s/?#@:]*:)[^\s/?#]+(?=@)",  # user:password@host
    _SCHEME + r")[^\s/?#@:]{20,}(?=@)",  # token@host
    rf"([?&](?:{_SECRET}|(?:[\w.-]{{0,40}}[_.-])?(?:key|token|auth|pass|pwd|sig|signature))=)[^&#\s\"'<>]+",
]
_IN_WORDS = [
    r"(\bauthorization\W{1,6}(?:(?:bearer|basic|token|digest)\s+)?)[^\s\"',;})<>]{8,}",
    r"(\b(?:bearer|basic)\s+)(?=[a-z.]*[^\sa-z.])[\w.~+/=-]{8,}",
    rf"(\b(?:{_SECRET})[\"']?\s?[:=]\s?[\"']?)(?=[^\s\"',;&]{{0,99}}\d)[^\s\"',;&)}}\]<>]{{8,}}",  # api_key=...
]
_KEYS = (  # say themselves what they are
    r"()\b(?:[spr]k-(?=[\w-]{0,60}\w{20})|(?:gsk|hf|gh[opsur])_(?=\w{20})|(?:github_pat_|glpat-|nvapi-|xai-)(?=\w{20})"
    r"|AKIA(?=[A-Z0-9]{16})|AIza(?=[\w-]{30}))[\w-]+"
)
_PLACES = [*(re.compile(place, re.IGNORECASE) for place in [*_IN_URLS, *_IN_WORDS]), re.compile(_KEYS)]
_kept: set[str] = set()


def keep_secret(value: str | None) -> None:
    """Let `redact` mask this value from now on, wherever it stands."""
    if value and len(value.strip()) >= SHORTEST:
        _kept.update((value, value.strip(), quote(value, safe=""), unquote(value)))


def keep_secrets_of(settings: Any) -> None:
    """Let `redact` mask the secrets of these settings, wherever they stand: a server or an error may say them back."""
    for name, text in _texts(settings):
        if _SETTING.fullmatch(name.rpartition(".")[2]):
            keep_secret(text)
        for place in _PLACES[: len(_IN_URLS)]:
            for found in place.finditer(text):
                keep_secret(found[0].removeprefix(found[1]))


def redact(text: str) -> str:
    """A text without secrets: those kept, values of environment variables whose names say so, and what looks like one.

    It is for settings and for the words of programs and servers. A row's text is never redacted. Cut a text after it is
    redacted, not before.

    Args:
        text: Any text.

    Returns:
        The text with `MASK` for each password of a URL, secret parameter of its query, Authorization header and key.
    """
    for value in sorted(_kept | _of_the_environment(), key=len, reverse=True):
        text = text.replace(value, MASK)
    for place in _PLACES:
        text = place.sub(rf"\g<1>{MASK}", text)
    return text


def redact_settings(settings: Any, name: str = "") -> Any:
    """Settings as they may be saved, of the same form: what `name` says is a secret is masked, all other text redacted.

    Args:
        settings: Plain values, dicts, lists and jsonargparse's namespaces.
        name: What they are the value of.
    """
    if isinstance(settings, Namespace):
        return Namespace(**redact_settings(vars(settings)))
    if isinstance(settings, dict):
        return {key: redact_settings(value, str(key)) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return type(settings)(redact_settings(value, name) for value in settings)
    if not isinstance(settings, str):
        return settings
    return MASK if settings and _SETTING.fullmatch(name) else redact(settings)


def refuse_masked(settings: Any) -> None:
    """Check that settings hold what was a secret, where they come from a file that was saved without.

    Raises:
        ValueError: One is masked.
    """
    for name, text in _texts(settings):
        if MASK in text:
            raise ValueError(
                f"{name}: {text} was saved without its secret; give the whole value on the command line, or in a YAML "
                "of your own after this one"
            )


def _texts(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The texts of settings, with their names joined by dots."""
    if isinstance(settings, str):
        yield name, settings
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value, name)
    elif isinstance(settings, dict | Namespace):
        for key, value in (vars(settings) if isinstance(settings, Namespace) else settings).items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))


def _of_the_environment() -> set[str]:
    """Values of variables such as HF_TOKEN, but for short ones and paths."""
    found = {value for name, value in os.environ.items() if len(value) >= SHORTEST_FOUND and _VARIABLE.search(name)}
    return {value for value in found if not os.path.exists(value)}
