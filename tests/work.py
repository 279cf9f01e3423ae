"""Counts the work that reading a text takes: lines of Python, steps of regular expressions, characters copied."""

import contextlib
import json
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import _lru_cache_wrapper, cache
from re import _compiler, _parser
from re import _constants as op
from typing import Any
from unittest.mock import patch

Next = Callable[[int], bool]
PACKAGES = ("datamodules", "rewards")
_SINGLE = {op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN}
_parse = re._compile  # type: ignore[attr-defined]  # the real one


class Work:
    """What was counted."""

    def __init__(self) -> None:
        self.steps = 0
        self.memory = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count while the body runs: the packages' own expressions take their steps in an engine that counts them.

        Counted are, each as 1: a line of the packages that is run, a step of an expression, a character that JSON
        reads, and 64 bytes that a line copies. What only looks through a text in C (`find`, `in`, `==`) is not.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(patch.object(re, "_compile", lambda *given: Counted(_parse(*given), self)))
            stack.enter_context(patch.object(json.JSONDecoder, "raw_decode", self._raw_decode()))
            for name, module in list(sys.modules.items()):
                if name.partition(".")[0] in PACKAGES:
                    for key, value in list(vars(module).items()):
                        if (counted := self._counted(value)) is not value:
                            stack.enter_context(patch.object(module, key, counted))
            tracemalloc.start()
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                yield
            finally:
                sys.settrace(before)
                tracemalloc.stop()

    def _counted(self, value: Any) -> Any:
        """A value in which expressions count and nothing is kept from earlier texts; itself where there is neither."""
        if isinstance(value, re.Pattern):
            return Counted(value, self)
        if isinstance(value, _lru_cache_wrapper):
            return value.__wrapped__  # how full a cache is, and when it grows, is no work on this text
        if isinstance(value, dict):
            parts = {key: self._counted(part) for key, part in value.items()}
            return parts if any(parts[key] is not value[key] for key in parts) else value
        if type(value) in (list, tuple):
            items = [self._counted(part) for part in value]
            return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
        return value

    def _raw_decode(self) -> Callable[..., Any]:
        real = json.JSONDecoder.raw_decode

        def raw_decode(decoder: json.JSONDecoder, s: str, idx: int = 0) -> Any:
            try:
                value, end = real(decoder, s, idx)
            except json.JSONDecodeError as error:
                self.steps += error.pos - idx
                raise
            self.steps += end - idx
            return value, end

        return raw_decode

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in PACKAGES:
            return None
        now, peak = tracemalloc.get_traced_memory()
        self.steps += 1 + max(0, peak - self.memory) // 64
        self.memory = now
        tracemalloc.reset_peak()
        return self._trace


class Counted:
    """An expression that does what it is asked, and counts the steps of a backtracking engine that does the same."""

    def __init__(self, pattern: re.Pattern[str], work: Work) -> None:
        self.pattern, self.work = pattern, work
        self.groups, self.groupindex = pattern.groups, pattern.groupindex

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pattern, name)

    def _try(self, text: str, at: int, end: int, whole: bool = False, last: int = 0) -> tuple[int, int] | None:
        """Where it matches that begins at a place, or at one from there to the last."""
        before, limit = sys.gettrace(), sys.getrecursionlimit()
        sys.settrace(None)
        sys.setrecursionlimit(1_000_000)
        try:
            run = engine(self.pattern)
            for start in range(at, max(at, last) + 1):
                if (found := run(self.work, text, start, end, whole)) is not None:
                    return start, found
            return None
        finally:
            sys.setrecursionlimit(limit)
            self.work.memory = tracemalloc.get_traced_memory()[0]  # the engine's own is no work of the reader
            tracemalloc.reset_peak()
            sys.settrace(before)

    def _one(self, method: str, text: str, at: int, end: int) -> re.Match[str] | None:
        end = min(end, len(text))
        at = min(at, end)
        real = getattr(self.pattern, method)(text, at, end)
        ours = self._try(text, at, end, whole=method == "fullmatch", last=end if method == "search" else at)
        assert ours == (real and real.span()), (self.pattern, method, text[:80], ours, real)
        return real  # type: ignore[no-any-return]

    def match(self, text: str, at: int = 0, end: int = sys.maxsize) -> re.Match[str] | None:
        return self._one("match", text, at, end)

    def fullmatch(self, text: str, at: int = 0, end: int = sys.maxsize) -> re.Match[str] | None:
        return self._one("fullmatch", text, at, end)

    def search(self, text: str, at: int = 0, end: int = sys.maxsize) -> re.Match[str] | None:
        return self._one("search", text, at, end)

    def _all(self, text: str) -> None:
        at = 0
        for real in self.pattern.finditer(text):
            assert self._try(text, at, len(text), last=len(text)) == real.span() or not real[0], (
                self.pattern,
                text[:80],
            )
            at = max(real.end(), real.start() + 1)
        self._try(text, at, len(text), last=len(text))

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        self._all(text)
        return self.pattern.finditer(text)

    def findall(self, text: str) -> list[Any]:
        self._all(text)
        return self.pattern.findall(text)

    def split(self, text: str, maxsplit: int = 0) -> list[Any]:
        self._all(text)
        return self.pattern.split(text, maxsplit)

    def sub(self, new: Any, text: str, count: int = 0) -> str:
        self._all(text)
        return self.pattern.sub(new, text, count)


@cache
def engine(pattern: re.Pattern[str]) -> Callable[[Work, str, int, int, bool], int | None]:
    """Matches as `re` does, step by step: where it began and may end are given, where it ends is returned."""
    tree = _parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    flags = tree.state.flags
    run: dict[str, Any] = {}

    def real(item: Any) -> re.Pattern[str]:
        return _compiler.compile(_parser.SubPattern(tree.state, [item]), flags)  # type: ignore[no-any-return]

    def first(items: Any) -> str | None:
        return chr(items[0][1]) if len(items) and items[0][0] is op.LITERAL and not flags & re.IGNORECASE else None

    def sequence(items: Any) -> Callable[[int, Next], bool]:
        nodes = [node(*item) for item in items]

        def from_node(place: int, at: int, then: Next) -> bool:
            if place == len(nodes):
                return then(at)
            return nodes[place](at, lambda end: from_node(place + 1, end, then))

        return lambda at, then: from_node(0, at, then)

    def atomic(inner: Callable[[int, Next], bool], at: int) -> int | None:
        ends: list[int] = []
        return ends[0] if inner(at, lambda end: ends.append(end) or True) else None  # type: ignore[func-returns-value]

    def node(kind: Any, value: Any) -> Callable[[int, Next], bool]:
        made = _single(kind, value) if kind in _SINGLE else _group(kind, value)

        def step(at: int, then: Next) -> bool:
            run["work"].steps += 1
            return made(at, then)

        return step

    def fits(kind: Any, value: Any) -> Callable[[int], bool]:
        known = cache(real((kind, value)).match)
        return lambda at: at < run["end"] and known(run["text"][at]) is not None

    def _single(kind: Any, value: Any) -> Callable[[int, Next], bool]:
        fit = fits(kind, value)
        return lambda at, then: fit(at) and then(at + 1)

    def _group(kind: Any, value: Any) -> Callable[[int, Next], bool]:
        if kind is op.AT:
            anchor = real((kind, value))
            return lambda at, then: anchor.match(run["text"], at, run["end"]) is not None and then(at)
        if kind in (op.ASSERT, op.ASSERT_NOT):
            wanted = kind is op.ASSERT
            if value[0] < 0:
                behind = real((kind, value))
                return lambda at, then: behind.match(run["text"], at, run["end"]) is not None and then(at)
            ahead = sequence(value[1])
            return lambda at, then: (atomic(ahead, at) is not None) is wanted and then(at)
        if kind is op.BRANCH:
            branches = [(first(branch), sequence(branch)) for branch in value[1]]

            @cache
            def possible(character: str) -> list[Any]:  # as `re` does, by the first character
                return [branch for start, branch in branches if start in (None, character)]

            return lambda at, then: any(branch(at, then) for branch in possible(run["text"][at : at + 1]))
        if kind is op.ATOMIC_GROUP:
            whole = sequence(value)
            return lambda at, then: (end := atomic(whole, at)) is not None and then(end)
        if kind is op.GROUPREF:

            def same(at: int, then: Next) -> bool:
                start, end = run["groups"].get(value, (0, -1))
                length = end - start
                run["work"].steps += max(length, 0)
                return length >= 0 and run["text"][start:end] == run["text"][at : at + length] and then(at + length)

            return same
        if kind is op.SUBPATTERN:
            return _captured(value[0], sequence(value[3]))
        return _repeated(kind, *value)

    def _captured(number: int | None, inner: Callable[[int, Next], bool]) -> Callable[[int, Next], bool]:
        def captured(at: int, then: Next) -> bool:
            def close(end: int) -> bool:
                earlier = run["groups"].get(number)
                run["groups"][number] = (at, end)
                if then(end):
                    return True
                run["groups"][number] = earlier or (0, -1)
                return False

            return inner(at, close)

        return inner if number is None else captured

    def _repeated(kind: Any, least: int, most: Any, items: Any) -> Callable[[int, Next], bool]:
        most = sys.maxsize if most is op.MAXREPEAT else int(most)
        if len(items) == 1 and items[0][0] in _SINGLE:
            fit = fits(*items[0])

            def characters(at: int, then: Next) -> bool:
                end, count = at, 0
                if kind is op.MIN_REPEAT:
                    while count < least and fit(end):
                        end, count = end + 1, count + 1
                    while count >= least:
                        run["work"].steps += 1
                        if then(end):
                            return True
                        if count == most or not fit(end):
                            return False
                        end, count = end + 1, count + 1
                    return False
                while count < most and fit(end):
                    end, count = end + 1, count + 1
                run["work"].steps += count
                if kind is op.POSSESSIVE_REPEAT:
                    return count >= least and then(end)
                while count >= least:
                    run["work"].steps += 1
                    if then(end):
                        return True
                    end, count = end - 1, count - 1
                return False

            return characters
        inner = sequence(items)

        def possessive(at: int, then: Next) -> bool:
            count = 0
            while count < most and (end := atomic(inner, at)) is not None:
                count += 1
                if end == at:
                    count = max(count, least)
                    break
                at = end
            return count >= least and then(at)

        def again(count: int, at: int, then: Next) -> bool:
            def next_one(end: int) -> bool:
                return (end > at or count < least) and again(count + 1, end, then)

            def more() -> bool:
                return count < most and inner(at, next_one)

            run["work"].steps += 1
            if kind is op.MIN_REPEAT:
                return (count >= least and then(at)) or more()
            return more() or (count >= least and then(at))

        return possessive if kind is op.POSSESSIVE_REPEAT else lambda at, then: again(0, at, then)

    whole = sequence(tree)

    def matched(work: Work, text: str, at: int, end: int, to_the_end: bool) -> int | None:
        run.update(work=work, text=text, end=end, groups={})
        return atomic(lambda at, then: whole(at, lambda stop: (not to_the_end or stop == end) and then(stop)), at)

    return matched


def count(work: Work, read: Callable[[str], Any], text: str) -> int:
    """The work of a reader on a text, while it is counted; that the text is refused is an answer, too."""
    before = work.steps
    with contextlib.suppress(ValueError):
        read(text)
    return work.steps - before
