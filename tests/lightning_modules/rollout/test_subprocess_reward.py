"""Functions in processes of their own: several calls at a time, answers in order, and no process is left behind."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lightning_modules.rollout import subprocess_reward
from lightning_modules.rollout.fork_server import fork
from lightning_modules.rollout.subprocess_reward import Answer, call, call_all, make_pools


def pool(function, count, timeout=30.0):
    return make_pools({"f": function}, count, timeout)["f"]


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

    pools = make_pools({name: partial(named, name) for name in ("f", "gg")}, 1, 30.0)
    assert call_all(pools, [("x",)]) == {"f": [Answer(1.0)], "gg": [Answer(2.0)]}


def test_processes_start_when_they_are_needed_and_stay():
    three = pool(lambda _: float(os.getpid()), 3)
    assert not any(worker.pid for worker in three)
    call_all({"f": three}, [("x",)])
    assert [worker.pid > 0 for worker in three] == [True, False, False]
    first = three[0].pid
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


@pytest.mark.kills
def test_a_process_that_died_between_two_calls_is_replaced():
    (worker,) = pool(float, 1)
    assert call_all({"f": [worker]}, [("1",)]) == {"f": [Answer(1.0)]}
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.pipe.poll(30)  # its end
    assert call_all({"f": [worker]}, [("2",)]) == {"f": [Answer(2.0)]}


def test_an_answer_that_nobody_waited_for_is_not_the_next_call_s(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    two = pool(float, 2)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess_reward, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call_all({"f": two}, [("1",), ("2",)])
    assert call_all({"f": two}, [("3",), ("4",)]) == {"f": [Answer(3.0), Answer(4.0)]}


def test_errors_are_one_short_line():
    def fail():
        raise ValueError("one\ntwo " + 1000 * "x")

    error = call(fail, ()).error
    assert error.startswith("ValueError: one two xxx") and len(error) <= subprocess_reward.SHOWN


def alive(pid):
    """Whether a process runs; one that has ended may stay as a zombie where nobody collects orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_end(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def hang(folder, way):
    """Never returns; where it waits for another program, no signal to it alone ends that."""
    program = subprocess.Popen(["sleep", "600"]) if way == "in a program" else None
    (folder / f"{os.getpid()}").write_text(str(program.pid if program else os.getpid()))
    if program:
        program.wait()
    while True:
        time.sleep(0.01)


def written(folder, count):
    """The ids in that many files of a folder, when they are there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pids = [int(path.name) for path in folder.iterdir() if path.read_text()]
        if len(pids) == count:
            return pids + [int(path.read_text()) for path in folder.iterdir()]
        time.sleep(0.02)
    raise AssertionError(f"{list(folder.iterdir())}")


@pytest.mark.kills
@pytest.mark.parametrize("way", ["in Python", "in a program"])
@pytest.mark.parametrize("victim", ["trainer", "server"])
def test_functions_that_hang_end_with_a_parent_that_is_killed(tmp_path, way, victim):
    def trainer():
        pools = make_pools({f: partial(hang, tmp_path) for f in "fg"}, 2, 600.0)
        other = make_pools({"h": float}, 1, 600.0)  # whose server holds a copy of the first one's socket
        call_all(other, [("1",)])
        pid_file.write_text(f"{pools['f'][0].server.pid} {other['h'][0].server.pid} {other['h'][0].pid}")
        call_all(pools, [(way,), (way,)])

    pid_file = tmp_path.parent / f"{tmp_path.name}-pids"
    process = fork(trainer)
    pids = written(tmp_path, 4)
    servers = [int(pid) for pid in pid_file.read_text().split()]
    if victim == "trainer":
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert all_end([*pids, *servers])
        return
    os.kill(servers[0], signal.SIGKILL)  # the kernel's signal, which reaches no programs beyond
    assert all_end([int(path.name) for path in tmp_path.iterdir()])
    os.waitpid(process, 0)  # its calls have failed, and no others can be begun
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_call_that_is_stopped_takes_along_what_it_has_started(tmp_path):
    (answer,) = call_all({"f": pool(partial(hang, tmp_path), 1, timeout=1.0)}, [("in a program",)])["f"]
    assert answer.error.startswith("TimeoutError") and all_end(written(tmp_path, 1))


def test_processes_end_when_their_pools_are_let_go():
    two = pool(lambda: float(os.getpid()), 2)
    pids = {int(answer.value) for answer in call_all({"f": two}, [(), ()])["f"]} | {two[0].server.pid}
    assert all(map(alive, pids))
    del two
    assert all_end(pids)


def test_functions_that_cannot_be_pickled_are_forked_off_a_process_of_before(tmp_path):
    """A lock that is held when a process is started would be held in it for ever, were it forked here and now."""
    lock, unpicklable = threading.Lock(), open(tmp_path / "file", "w")

    def guarded(value):
        with lock:
            return float(value) + unpicklable.fileno() * 0

    pools = {"f": pool(guarded, 1, timeout=5.0)}
    with lock:
        assert call_all(pools, [("2",)]) == {"f": [Answer(2.0)]}
    unpicklable.close()


def test_a_fork_of_the_trainer_has_a_server_of_its_own():
    (worker,) = pool(lambda: float(os.getppid()), 1)
    ours, theirs = multiprocessing.Pipe()
    process = fork(lambda: theirs.send(call_all({"f": [worker]}, [()])["f"][0].value))
    assert ours.poll(30)
    assert int(ours.recv()) not in (worker.server.pid, 0)
    os.waitpid(process, 0)
    assert call_all({"f": [worker]}, [()])["f"] == [Answer(float(worker.server.pid))]


@pytest.mark.kills
def test_a_server_that_is_gone_is_one_sentence():
    (worker,) = pool(float, 1)
    os.kill(worker.server.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"starts those of model.rewards has died .*--ckpt_path"):
        call_all({"f": [worker]}, [("1",)])


@pytest.mark.kills
def test_a_signal_to_all_processes_of_a_job_leaves_the_server():
    """Schedulers send SIGTERM to every process before they kill: the trainer still has a step to finish."""
    (worker,) = pool(float, 1)
    assert call_all({"f": [worker]}, [("1",)]) == {"f": [Answer(1.0)]}
    for pid in (worker.server.pid, worker.pid):
        os.kill(pid, signal.SIGTERM)
    assert worker.pipe.poll(30)  # the worker's end; another is started
    assert call_all({"f": [worker]}, [("2",)]) == {"f": [Answer(2.0)]}
