"""Judges whose replies a test writes."""

import asyncio
from pathlib import Path

import pytest

YES, NO = "<judge>True</judge>", "<judge>False</judge>"


@pytest.fixture(autouse=True)
def root(monkeypatch):
    """Shipped configs are named as from the top of the repository."""
    monkeypatch.chdir(Path(__file__).parents[3])


class Scripted:
    """Answers each stage with the next of its replies, the last one again and again; keeps what it was asked."""

    def __init__(self, **replies):
        self.replies = {stage: list(given) if isinstance(given, list) else [given] for stage, given in replies.items()}
        self.asked = []

    async def __call__(self, question):
        self.asked.append(question)
        given = self.replies.get(question.stage, [YES])
        reply = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def close(self):
        pass

    @property
    def stages(self):
        return [question.stage for question in self.asked]


@pytest.fixture
def scripted():
    return Scripted


@pytest.fixture
def run():
    """Run a coroutine."""
    return asyncio.run
