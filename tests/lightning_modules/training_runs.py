"""What tests of training share: given batches, several ranks, and what a run has logged and saved."""

import csv
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch

from lightning_modules.checkpointing.formats import load

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["lightning_modules.cli", "peft"])
REPEATABLE = ("train/", "tool/", "reward/", "policy/", "advantage/", "entropy_bonus/", "completion/")
"""Starts of the names of metrics that do not depend on the clock."""
# 23 rows in batches of 11, 11 and 1, a document a micro-batch: of the last one most ranks have none.
SHARDED = """
import torch, weakref
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from lightning_modules.policy import unshard
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.shard import blocks_of

dist.init_process_group("gloo")
held, most, gather = {}, [0], unshard.unshard

def counted(shard):
    whole = gather(shard)
    held[id(whole)] = whole.nbytes
    weakref.finalize(whole, held.pop, id(whole))
    most[0] = max(most[0], sum(held.values()))
    return whole

def sharded(model, lora):
    torch.manual_seed(0)
    policy = build_policy(model, lora)
    for name, weight in policy.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight)
    whole = {name: weight.clone() for name, weight in unshard.merged_weights(policy)}
    for part in (*blocks_of(policy, None), policy):
        fully_shard(part)
    assert unshard.is_sharded(policy)
    return policy, whole
"""
"""Of a script of ranks: `sharded` gives a policy of shards and its whole weights; `counted` replaces `unshard`."""

UNEVEN = {
    "model.init_args.learning_rate": 0.001,
    "model.init_args.epsilon": 0.001,  # no gradient that is all rounding decides a step
    "data.init_args.batch_size": 11,
    "data.init_args.max_length": 700,
    "data.init_args.micro_batch_tokens": 700,
    "data.init_args.val_fraction": 0.05,
    "trainer.max_epochs": 1,
    "best_checkpoint.monitor": "null",  # keep every step
    "best_checkpoint.every_n_train_steps": 1,
    "best_checkpoint.save_top_k": -1,
}
"""Options of a run of SRML of which every step is kept."""


class Steps:
    """A loader of given optimizer batches."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def metrics(run, prefixes=REPEATABLE):
    """What a run has logged, by step and name."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {(int(r["step"]), r["name"]): float(r["value"]) for r in rows if r["name"].startswith(prefixes)}


def saved_state(run, step):
    return load(run / "checkpoints" / f"last-{step:06d}.ckpt")


def assert_same(one, other):
    """That two states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@contextmanager
def rewards_module(folder, text):
    """The module `toy_rewards`, for this process and those that it starts."""
    (folder / "toy_rewards.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "toy_rewards", raising=False)  # that of another file's tests
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        yield patch


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(*args, ranks=2):
    """What two gloo ranks, or more, end with that torchrun starts on a program and its arguments."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def command_on_ranks(*words, ranks=2, before=None):
    """What a command of `funreason` ends with on several gloo ranks, started as torchrun starts them.

    Args:
        words: The command line.
        ranks: How many; 1 for a process that is to be killed.
        before: What each rank calls first; pickled, so that it stands in a module of its own.

    Returns:
        `returncode` of the lowest rank that failed, the `returncodes` of all, `stdout` and `stderr` of all together.
    """
    return _on_ranks(partial(_command, before), words, ranks)


def script_on_ranks(script, *words, ranks=2):
    """The same of a script and its arguments."""
    return _on_ranks(partial(runpy.run_path, str(script), run_name="__main__"), words, ranks)


def _on_ranks(call, words, ranks):
    """Fork ranks off a process that has imported the command, which takes longer than the training in most tests."""
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": "test"}
    words, threads = list(map(str, words)), 1 if ranks > 1 else torch.get_num_threads()
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        processes = [
            FORKED.Process(target=_rank, args=(call, words, environment | {"RANK": n, "LOCAL_RANK": n}, files, threads))
            for n in map(str, range(ranks))
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(240)
        finally:
            for process in processes:
                process.kill()
                process.join()
        codes = [process.exitcode for process in processes]
        out, err = (file.read_text() for file in files)
    return SimpleNamespace(returncode=next(filter(None, codes), 0), returncodes=codes, stdout=out, stderr=err)


def _rank(call, words, environment, files, threads):
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    torch.set_num_threads(threads)
    sys.argv = ["funreason", *words]
    call()


def _command(before):
    from lightning_modules.commands.main import main

    if before:
        before()
    main()


def press_ctrl_c_in_step(number, patch):
    """Have Ctrl-C pressed while the optimizer takes its step of this number, as soon as it has moved the weights."""
    steps, original = [], torch.optim.AdamW.step

    def step(optimizer, *args, **named):
        original(optimizer, *args, **named)
        steps.append(optimizer)
        if len(steps) == number:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(torch.optim.AdamW, "step", step)
