"""Calls from a thread of their own, which may hang without keeping Python from its exit."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")


def in_thread(call: Callable[..., Outcome], *args: Any, **kwargs: Any) -> "Future[Outcome]":
    """Make a call from another thread; Python waits for those of a `ThreadPoolExecutor` before it exits.

    Returns:
        What the call returns, or raises, once it has.
    """
    future: Future[Outcome] = Future()

    def calling() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:  # all of them belong to the caller, who is in another thread
            future.set_exception(error)

    Thread(target=calling, daemon=True).start()
    return future
