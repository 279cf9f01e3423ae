"""A check that the Hugging Face hub answers, because its clients retry for most of a minute before they fail."""

import re
import ssl
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

SECONDS = 10  # for an answer of any kind


def refuse_unreachable(model: str) -> None:
    """Refuse a model that is neither in the hub's cache here nor on a hub that answers.

    Args:
        model: Its hub id.

    Raises:
        FileNotFoundError: It is no hub id, or the hub cannot be reached.
    """
    try:
        cached = isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError as error:
        raise FileNotFoundError(f"init_from: there is no folder {model} here, and it is no hub id: {error}") from error
    if not cached:
        _ask(f"init_from: there is no folder {model} here")


def refuse_unreachable_rows(name: str) -> None:
    """Refuse a data set that is neither in the cache of `datasets` here nor on a hub that answers.

    Args:
        name: Its hub id.

    Raises:
        FileNotFoundError: The hub cannot be reached.
    """
    from datasets.config import HF_DATASETS_CACHE  # slow to import, and most runs read a file

    folder = Path(HF_DATASETS_CACHE)
    wanted = re.sub("[_/]", "", name).lower()  # the cache writes a/MyRows as a___my_rows
    if not (folder.is_dir() and any(found.name.replace("_", "").lower() == wanted for found in folder.iterdir())):
        _ask(f"there is no file, folder or cached data set {name} here")


def _ask(lacking: str) -> None:
    try:
        ask_hub()
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise FileNotFoundError(f"{lacking}, and the hub ({constants.ENDPOINT}) cannot be reached: {reason}") from error


@cache
def ask_hub() -> None:
    """Wait for an answer of any kind, unless the hub's clients know not to ask it; once that one has come, no more.

    Raises:
        OSError: There is none.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return  # whether it has what is wanted is for its client to find out
    except OSError as error:
        if not isinstance(getattr(error, "reason", None), ssl.SSLError):  # the client brings certificates of its own
            raise
