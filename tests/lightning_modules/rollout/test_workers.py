"""Functions in processes of their own: several calls at a time, answers in order, and no process is left behind."""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from lightning_modules.rollout import workers
from lightning_modules.rollout.workers import Answer, Worker, call, call_all


def pool(function, count, timeout=30.0):
    return [Worker(function, timeout) for _ in range(count)]


def meet(folder, everyone, name):
    """Returns only when all are here, and so only if all are called at the same time."""
    (folder / name).touch()
    while not all((folder / other).exists() for other in everyone):
        time.sleep(0.01)
    return float(len(name))


def test_calls_of_one_function_are_made_at_the_same_time_and_answers_are_in_order(tmp_path):
    names = ["a", "bb", "ccc", "dddd"]
    answers = call_all({"f": pool(partial(meet, tmp_path, names), 4)}, [(name,) for name in names])
    assert answers == {"f": [Answer(1.0), Answer(2.0), Answer(3.0), Answer(4.0)]}


def test_calls_of_different_functions_are_made_at_the_same_time(tmp_path):
    def named(name, _):
        return meet(tmp_path, ["f", "gg"], name)

    pools = {name: pool(partial(named, name), 1) for name in ("f", "gg")}
    assert call_all(pools, [("x",)]) == {"f": [Answer(1.0)], "gg": [Answer(2.0)]}


def test_processes_start_when_they_are_needed_and_stay():
    three = pool(lambda _: float(os.getpid()), 3)
    assert not any(worker.process for worker in three)
    call_all({"f": three}, [("x",)])
    assert [worker.process is not None for worker in three] == [True, False, False]
    first = three[0].process.pid
    assert first in [answer.value for answer in call_all({"f": three}, [("x",)] * 3)["f"]]


def test_a_call_that_hangs_holds_up_no_other(tmp_path):
    def run(word):
        if word == "hang":
            (tmp_path / "pid").write_text(str(os.getpid()))
            os.replace(tmp_path / "pid", tmp_path / "hanging")
            time.sleep(600)
        while not (tmp_path / "hanging").exists():
            time.sleep(0.01)
        os.kill(int((tmp_path / "hanging").read_text()), 0)  # it hangs still: nobody has waited for its end
        return 1.0

    answers = call_all({"f": pool(run, 2, timeout=3)}, [("hang",), ("a",), ("b",), ("c",)])["f"]
    assert answers == [Answer(None, "TimeoutError: no score after 3 s"), Answer(1.0), Answer(1.0), Answer(1.0)]


def test_more_errors_than_allowed_end_the_calls():
    def fail(number):
        raise ValueError(number)

    answers = call_all({"f": pool(fail, 1)}, [(i,) for i in range(9)], most_errors=2)["f"]
    assert answers == [Answer(None, f"ValueError: {i}") for i in range(3)] + [Answer(None)] * 6


def test_a_process_that_died_between_two_calls_is_replaced():
    (worker,) = pool(float, 1)
    assert call_all({"f": [worker]}, [("1",)]) == {"f": [Answer(1.0)]}
    worker.process.kill()
    worker.process.join()
    assert call_all({"f": [worker]}, [("2",)]) == {"f": [Answer(2.0)]}


def test_an_answer_that_nobody_waited_for_is_not_the_next_call_s(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    two = pool(float, 2)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call_all({"f": two}, [("1",), ("2",)])
    assert call_all({"f": two}, [("3",), ("4",)]) == {"f": [Answer(3.0), Answer(4.0)]}


def test_errors_are_one_short_line():
    def fail():
        raise ValueError("one\ntwo " + 1000 * "x")

    error = call(fail, ()).error
    assert error.startswith("ValueError: one two xxx") and len(error) <= workers.SHOWN


def alive(pid):
    """Whether a process runs; one that has ended may stay as a zombie where nobody collects orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    def parent(pipe):
        everyone = tmp_path / "met"
        everyone.mkdir()
        pools = {f: pool(partial(meet, everyone, "abc"), 3) for f in ("f", "g")}
        call_all(pools, [(name,) for name in "abc"])
        pipe.send([worker.process.pid for some in pools.values() for worker in some])
        signal.pause()

    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=parent, args=(theirs,))
    process.start()
    assert ours.poll(60)
    pids = ours.recv()
    assert len(set(pids)) == 6 and all(map(alive, pids))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
