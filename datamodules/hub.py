"""Whether the hub can be asked at all: its clients try for most of a minute before they say no."""

import ssl
import urllib.error
import urllib.request
from functools import cache

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

SECONDS = 10  # for an answer of any kind


@cache
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
    if cached or constants.HF_HUB_OFFLINE:
        return
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer: whether it has the model is for its client to find out
    except OSError as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # the client brings certificates of its own
        reason = getattr(error, "reason", error)
        raise FileNotFoundError(
            f"init_from: there is no folder {model} here, and the hub ({constants.ENDPOINT}) cannot be reached: "
            f"{reason}"
        ) from error
