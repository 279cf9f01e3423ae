"""No file of a checkpoint runs code: each is refused by one sentence that names it."""

import io
import json
import os
import pickle
import random
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lightning_modules.checkpointing.formats import REST, AnyCheckpointIO, check_shards, load, shapes_in
from lightning_modules.checkpointing.reading import load_file, load_shards
from lightning_modules.cli import main

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
GROUP = {"lr": 0.1, "betas": (0.9, 0.99), "foreach": None, "params": ["w", "b"]}
OPTIMIZER = {"state": {"w": {"step": torch.tensor(2.0)}}, "param_groups": [GROUP]}
LOADER = {"loops": {"fit_loop": {"state_dict": {"combined_loader": [{"batch": 3, "seed": 1}]}}}}
FILE = {"state_dict": WEIGHTS, "optimizer_states": [OPTIMIZER], "callbacks": {"LastCheckpoint": {}}, **LOADER}
FILE |= {"epoch": 0, "global_step": 2, "pytorch-lightning_version": "2.5"}
NAMED = (
    r"^\S+/{file} asks for posix.mkdir, which is no part of a checkpoint and may be an attack: nothing of it was run;"
)


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def payload(tmp_path):
    yield Payload(tmp_path / "ran")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def shards(tmp_path):
    """A function that writes a sharded checkpoint, of which it is told what to put in the place of its parts."""

    def write(optimizer=OPTIMIZER, rest=LOADER):
        folder = tmp_path / "checkpoints" / "last-000002.ckpt"
        dcp.save({"state_dict": WEIGHTS, "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True)
        torch.save(rest, folder / REST)
        return folder

    return write


def contents(folder):
    return pickle.loads((folder / ".metadata").read_bytes())


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_is_saved_is_read(shards, tmp_path):
    folder = shards()
    assert shapes_in(folder) == {"w": (2, 3), "b": (3,)}
    found = load(folder)
    assert_same(found["state_dict"], WEIGHTS)
    assert found["optimizer_states"] == [OPTIMIZER] and found["loops"] == LOADER["loops"]
    into = {"state_dict": {"w": torch.zeros(2, 3)}, "optimizer_0": {"param_groups": [{"lr": 0.0, "betas": None}]}}
    load_shards(folder, into)
    assert_same(into["state_dict"]["w"], WEIGHTS["w"])
    assert into["optimizer_0"] == {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    torch.save(FILE, tmp_path / "one.ckpt")
    assert_same(AnyCheckpointIO().load_checkpoint(tmp_path / "one.ckpt")["state_dict"], WEIGHTS)


@pytest.mark.parametrize("read", [load, check_shards, shapes_in, AnyCheckpointIO().load_checkpoint, load_shards])
@pytest.mark.parametrize("place", ["alone", "planner_data", "storage_data", "storage_meta", "rank"])
def test_a_table_of_contents_runs_nothing(shards, payload, read, place):
    folder = shards()
    table = contents(folder)
    if place == "rank":  # torch would look for one of this rank where there is none of all
        (folder / "__0.metadata").write_bytes(pickle.dumps(payload))
        (folder / ".metadata").write_bytes(b"")
    elif place != "alone":
        setattr(table, place, {"state_dict.w": payload})
        (folder / ".metadata").write_bytes(pickle.dumps(table))
    else:
        (folder / ".metadata").write_bytes(pickle.dumps(payload))
    with pytest.raises(ValueError, match="is cut" if place == "rank" else NAMED.format(file=".metadata")):
        read(folder)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("torch", "hub.load"),
        ("torch", "load"),
        ("torch.serialization", "_get_layout.__globals__"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("pathlib", "os.path.Path"),
    ],
)
def test_a_table_of_contents_reaches_no_name_beside_its_classes(shards, module, name):
    folder = shards()
    stolen = (
        pickle.PROTO
        + b"\x04"
        + b"".join(pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode() for word in (module, name))
    )
    (folder / ".metadata").write_bytes(stolen + pickle.STACK_GLOBAL + pickle.STOP)
    words = f"asks for {module}.{name}, which is no part"
    if module == "pathlib":  # what is found is a path of ours, and no table
        words = "is cut, damaged or no checkpoint of this project (a type)"
    with pytest.raises(ValueError, match=re.escape(f"/.metadata {words}")):
        check_shards(folder)


def pickled(word):
    return pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode()


def test_a_table_of_contents_changes_no_class_of_the_program(shards):
    """Of a class as of an instance, pickle's BUILD sets the attributes that the second of two states names."""
    folder, name = shards(), Path.name
    named = pickled("pathlib") + pickled("PurePath") + pickle.STACK_GLOBAL
    change = pickle.NONE + pickle.EMPTY_DICT + pickled("name") + pickled("../x") + pickle.SETITEM + pickle.TUPLE2
    (folder / ".metadata").write_bytes(pickle.PROTO + b"\x04" + named + change + pickle.BUILD + pickle.STOP)
    with pytest.raises(ValueError, match=r"/\.metadata is cut, damaged"):
        check_shards(folder)
    assert Path.name is name and Path("a/b").name == "b"


def test_an_entry_of_the_shards_runs_nothing(shards, payload):
    folder = shards(OPTIMIZER | {"param_groups": [GROUP | {"lr": payload}]})
    refused = pytest.raises(ValueError, match=NAMED.format(file="__0_0.distcp"))
    with refused:
        load(folder)
    with refused:
        load_shards(folder, {"optimizer_0": {"param_groups": [{"lr": 0.0}]}})


def test_a_tensor_of_the_shards_runs_nothing(shards, payload):
    folder = shards(OPTIMIZER | {"param_groups": [GROUP | {"lr": payload}]})
    table = contents(folder)
    (weight,) = (index for index in table.storage_data if index.fqn == "state_dict.w")
    (planted,) = (index for index in table.storage_data if index.fqn.endswith(".lr"))
    table.storage_data[weight] = table.storage_data.pop(planted)
    del table.state_dict_metadata[planted.fqn]
    assert isinstance(table.state_dict_metadata["state_dict.w"], TensorStorageMetadata)
    (folder / ".metadata").write_bytes(pickle.dumps(table))
    refused = pytest.raises(ValueError, match=NAMED.format(file="__0_0.distcp"))
    with refused:
        load(folder)
    with refused:
        load_shards(folder, {"state_dict": {"w": torch.zeros(2, 3)}})


@pytest.mark.parametrize("key", ["loops", "callbacks", "ExactResume"])
def test_the_rest_of_a_folder_runs_nothing(shards, payload, key, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match=NAMED.format(file=REST)):
        load(shards(rest=LOADER | {key: payload}))


@pytest.mark.parametrize("key", [*FILE, "hyper_parameters"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_checkpoint_of_one_file_runs_nothing(tmp_path, payload, key, form, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file, state = tmp_path / "last-000002.ckpt", FILE | {key: payload}
    if form == "pickle":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "zip")
    # only of a zip file can parts be left on the disk, so torch looks no further into others
    with pytest.raises(ValueError, match=NAMED.format(file=file.name) if form == "zip" else f"{file} is cut, damaged"):
        AnyCheckpointIO().load_checkpoint(file, weights_only=False)


def test_a_part_outside_of_the_folder_is_refused(shards):
    folder = shards()
    table = contents(folder)
    next(iter(table.storage_data.values())).relative_path = "../other.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(table))
    with pytest.raises(ValueError, match=r"\.metadata is cut, damaged .*it names \.\./other\.distcp, which is outside"):
        check_shards(folder)


@pytest.mark.parametrize("part", ["__0_0.distcp", REST])
def test_a_part_that_is_missing_or_cut_short_is_named(shards, part):
    folder = shards()
    check_shards(folder)
    os.truncate(folder / part, (folder / part).stat().st_size - 1 if part != REST else 0)  # its last entry's last byte
    with pytest.raises(FileNotFoundError, match=rf"--ckpt_path {folder}: its part {part} is cut short; copy the whole"):
        check_shards(folder)
    (folder / part).unlink()
    with pytest.raises(FileNotFoundError, match=rf"--ckpt_path {folder}: its part {part} is missing; copy the whole"):
        load(folder)


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        *(
            ({part: None}, part)
            for part in ("state_dict", "loops", "epoch", "global_step", "pytorch-lightning_version")
        ),
        ({"pytorch-lightning_version": "new"}, "pytorch-lightning_version"),  # Lightning compares its numbers
        ({"state_dict": {"w": 1.0}}, "weights"),
    ],
)
def test_a_file_of_something_else_is_told_by_the_part_that_it_lacks(tmp_path, odd, named):
    file = tmp_path / "one.ckpt"
    torch.save(FILE | odd, file)
    with pytest.raises(
        ValueError, match=rf"--ckpt_path {file} is no checkpoint of a run: its {named} is missing or of"
    ):
        AnyCheckpointIO().load_checkpoint(file)


def test_a_damaged_file_is_one_sentence(shards, tmp_path):
    """Cut, and with bytes overwritten; what is still read is of no interest, what else is raised would be."""
    chance, file = random.Random(0), tmp_path / "one.ckpt"
    torch.save(FILE, file)
    folder = shards()
    for path in (file, folder / ".metadata", folder / REST, folder / "__0_0.distcp"):
        whole = path.read_bytes()
        for _ in range(40):
            start = chance.randrange(len(whole))
            end = chance.choice([len(whole), start + 8])
            path.write_bytes(whole[:start] + chance.randbytes(8 if end < len(whole) else 0) + whole[end:])
            try:
                load(file if path == file else folder)
            except (ValueError, FileNotFoundError) as error:
                assert str(path.parent) in str(error) and "\n" not in str(error)
        path.write_bytes(whole)
    file.write_bytes(pickle.dumps([1, 2]))
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match=r"one.ckpt is cut, damaged or no checkpoint of this project \(a list\)"):
        load_file(file)


@pytest.mark.parametrize("length", [0, 1_000, 20_000, 100_000])
def test_a_file_that_is_cut_is_named_however_much_of_it_is_left(tmp_path, length):
    """Of some 5,000 to 66,000 bytes torch would read what lies before their beginning: an error of the system."""
    file = tmp_path / "one.ckpt"
    torch.save(FILE | {"state_dict": {"weight": torch.zeros(50_000)}}, file)
    os.truncate(file, length)
    with pytest.raises(ValueError, match=r"one.ckpt is cut, damaged or no checkpoint of this project"):
        load_file(file)


def test_the_commands_run_nothing_and_say_so(shards, payload, base_args, tmp_path):
    folder, run = shards(), tmp_path / "run"
    (folder / ".metadata").write_bytes(pickle.dumps(payload))
    settings = {"model": {"init_args": {"init_from": "m"}}, "data": {"init_args": {}}}
    (tmp_path / "config.yaml").write_text(json.dumps(settings | {"trainer": {"precision": "32-true"}}))
    fit = ["fit", "--config", "configs/srml.yaml", *base_args(run), "--weights_only", "false"]
    for command in (["export"], fit):
        with pytest.raises(SystemExit) as exit_:
            main([*command, "--ckpt_path", str(tmp_path)])
        assert exit_.value.code.startswith(f"error: {folder / '.metadata'} asks for posix.mkdir, which is no part of")


def test_the_payload_of_these_tests_is_one(tmp_path):
    pickle.load(io.BytesIO(pickle.dumps(Payload(tmp_path / "ran"))))
    assert Path(tmp_path / "ran").is_dir()
