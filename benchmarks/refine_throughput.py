"""How fast a refinement asks its judge: against a server that takes 50 ms for a reply and asks for nothing else.

Command: python -m benchmarks.refine_throughput
"""

import argparse
import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record
from datamodules.refinement import OpenAIJudge, Panel, Question, fcdr
from datamodules.refinement.journal import Journal
from datamodules.refinement.run import refine_rows
from datamodules.rows import to_example
from datamodules.toolbox.rows import make_corpus

DELAY = 0.05  # seconds, as the stub has it
STUB = "tests/datamodules/refinement/stub_server.py"


def start_server() -> tuple[subprocess.Popen, str]:
    """The stub in a process of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.Popen([sys.executable, STUB, str(port)]), f"http://127.0.0.1:{port}/v1"


def ask_alone(url: str, questions: int, in_flight: int) -> float:
    """Seconds that a judge alone takes for so many questions."""
    question = Question("call", to_example(make_corpus("train", 1, 0)[0]))

    async def all_of_them() -> float:
        judge = OpenAIJudge("m", [url], per_server=in_flight)
        left = iter(range(questions))

        async def work() -> None:
            for _ in left:
                await judge(question)

        await judge(question)  # the server is there
        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        seconds = time.perf_counter() - start
        await judge.close()
        return seconds

    return asyncio.run(all_of_them())


def refine(url: str, rows: int, in_flight: int) -> tuple[float, int]:
    """Seconds that the five stages take for so many rows, journal included, and how many questions they asked."""
    corpus = [row for row in make_corpus("train", 2 * rows, 0) if row["answers"] != "[]"][:rows]
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        panel = Panel([OpenAIJudge("m", [url], per_server=in_flight)])
        start = time.perf_counter()
        refine_rows(iter(enumerate(corpus, start=1)), rows, fcdr, panel, journal, 2 * in_flight)
        seconds = time.perf_counter() - start
        asked = sum(verdict.replies for _, outcome in journal.outcomes() for verdict in outcome.verdicts)
        journal.close()
    return seconds, asked


def main() -> None:
    """Measure both and record them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine_throughput", description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--in_flight", type=int, default=64)
    options = parser.parse_args()
    ideal = options.in_flight / DELAY
    server, url = start_server()
    try:
        alone = 3 * options.rows / ask_alone(url, 3 * options.rows, options.in_flight)
        seconds, asked = refine(url, options.rows, options.in_flight)
    finally:
        server.terminate()
        server.wait()
    rows = [
        ["OpenAIJudge alone", f"{alone:,.0f}", f"{alone / ideal:.2f}"],
        ["the five stages with journal", f"{asked / seconds:,.0f}", f"{asked / seconds / ideal:.2f}"],
    ]
    record(
        "Refinement: questions to a judge",
        ["", "replies per second", "of the ideal"],
        rows,
        f"A stub server replies after 50 ms; with {options.in_flight} requests in flight {ideal:,.0f} replies a second "
        f"are ideal. {options.rows:,} rows of three questions, twice as many rows worked on as requests in flight. "
        "Client and server are one process each; the client's runs at the limit of its core.",
    )


if __name__ == "__main__":
    main()
