"""The held-out part of a source: chosen by each row's own request, so that order and other rows do not matter."""

import json
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np


def query_places(queries: Iterable[str]) -> np.ndarray:
    """A number in [0, 1) for each row that depends on its query alone, so that equal queries stay together."""
    digests = (blake2b(query.encode(), digest_size=8).digest() for query in queries)
    return np.array([int.from_bytes(digest) / 2**64 for digest in digests])


def opening(query: str, history: str) -> str:
    """The first request of a row's conversation, by which rows that were cut from one conversation stay together.

    Args:
        query: The row's own request.
        history: JSON of the turns before it.
    """
    turns = json.loads(history) if history != "[]" else []
    return next((turn["content"] for turn in turns if turn["role"] == "user"), query)


def hold_out(places: np.ndarray, fraction: float) -> np.ndarray:
    """Mask of the rows to hold out: those placed below the fraction, or the first of all where that is none.

    Args:
        places: From `query_places`, [rows].
        fraction: Expected share of the queries; 0 for none.

    Returns:
        Booleans [rows].
    """
    if fraction == 0:
        return np.zeros(len(places), dtype=bool)
    return places < max(fraction, np.nextafter(places.min(), 1))
