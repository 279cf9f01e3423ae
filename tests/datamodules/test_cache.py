"""The cache of encoded rows: whole whoever else writes, made again where it is damaged, never of another source."""

import json
import multiprocessing
import os
import shutil
import threading
import time
import tracemalloc

import pytest

from datamodules import cache, encoding
from datamodules.cache import DIGESTS, FILES, encode_rows
from datamodules.encoding import TABLE, EncodingSettings
from datamodules.system.imports import ROOT


@pytest.fixture
def rows_file(write_rows, make_row):
    rows = [make_row(i) for i in range(30)]
    rows[4] = make_row(4, query="")
    return write_rows(rows)


@pytest.fixture
def encode(tiny_tokenizer, tmp_path):
    def run(path, on_bad_row="skip"):
        return encode_rows(path, tiny_tokenizer, on_bad_row, str(tmp_path / "cache"))

    return run


def entry_of(tmp_path):
    (entry,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir() and path.suffix != ".damaged")
    return entry


def cut(file):
    os.truncate(file, file.stat().st_size * 2 // 3)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, DIGESTS])
@pytest.mark.parametrize("damage", [cut, flip, lambda file: file.write_bytes(b""), lambda file: file.unlink()])
def test_a_damaged_entry_is_named_set_aside_and_made_again(encode, rows_file, tmp_path, capsys, name, damage):
    expected = encode(rows_file)
    expected = (expected.table[:], list(expected.bad), expected.counts)
    entry = entry_of(tmp_path)
    damage(entry / name)
    again = encode(rows_file)
    assert (again.table[:], list(again.bad), again.counts) == expected
    aside = entry.with_name(f"{entry.name}.damaged")
    printed = capsys.readouterr().out
    assert f"the cached rows of {rows_file} are damaged" in printed and str(aside) in printed and aside.is_dir()
    encode(rows_file)
    assert "damaged" not in capsys.readouterr().out


def test_a_source_that_changes_while_it_is_read_is_not_cached(encode, rows_file, tmp_path, monkeypatch, make_row):
    original = encoding.read_rows

    def and_meanwhile(path):
        for number, row in original(path):
            if number == 10:  # the reader has the whole small file by now; somebody appends to it
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(make_row(99)) + "\n")
            yield number, row

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=rf"{rows_file} changed while it was read"):
        patch.setattr(encoding, "read_rows", and_meanwhile)
        encode(rows_file)
    assert not list((tmp_path / "cache").iterdir())
    assert encode(rows_file).table["id"][-1] == "99"


def test_two_runs_of_one_cache_and_one_process_id(encode, rows_file, tmp_path, monkeypatch, capsys):
    """As two containers have it, in both of which the run is process 1: one encodes, the other waits for its rows."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    written, original, inside = [], cache.write_rows, threading.Event()

    def write(*arguments):
        written.append(arguments[1])
        inside.set()
        assert other.is_alive() or not other.ident
        return original(*arguments)

    monkeypatch.setattr(cache, "write_rows", write)
    found = []
    other = threading.Thread(target=lambda: (inside.wait(30), found.append(encode(rows_file))))
    other.start()
    found.append(encode(rows_file))
    other.join(30)
    assert len(written) == 1 and len(found) == 2
    assert found[0].table[:] == found[1].table[:] and len(found[0].table) == 29


@pytest.mark.kills
def test_a_killed_run_leaves_neither_a_lock_nor_half_an_entry(encode, rows_file, tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    inside = context.Event()

    def stuck(folder, *arguments):
        (folder / TABLE).write_bytes(b"half")
        inside.set()
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "write_rows", stuck)
        other = context.Process(target=encode, args=(rows_file,))
        other.start()
        assert inside.wait(30)
    other.kill()
    other.join(30)
    assert len(list((tmp_path / "cache").iterdir())) == 3  # its lock, and what it wrote with a lock of its own
    assert len(encode(rows_file).table) == 29
    assert list((tmp_path / "cache").iterdir()) == [entry_of(tmp_path)]


def test_a_cache_that_cannot_be_written_is_one_sentence(tiny_tokenizer, rows_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"the cache .*file/cache cannot be written: Not a directory; name another data"
    ):
        encode_rows(rows_file, tiny_tokenizer, "skip", str(tmp_path / "file" / "cache"))


def test_bad_rows_are_not_held_in_memory(encode, write_rows, make_row):
    """10 MB of bad rows: the peak is a few of them, as they are written and as they are read back."""
    rows = [make_row(0), *(make_row(i, query="", cot="x" * 200_000) for i in range(1, 51))]
    path = write_rows(rows)
    rows.clear()
    tracemalloc.start()
    encoded = encode(path)
    assert sum(len(row["content"]) for row in encoded.bad) > 10e6
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(encoded.bad) == 50 and peak < 4e6


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the sources, and what gives the two digests of them."""
    root = tmp_path_factory.mktemp("sources")
    for package in ("rewards", "datamodules"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    sources = [("datamodules.cache",), ("datamodules.cache", "datamodules.toolbox.rows")]
    code = cache._code.__wrapped__  # without what is remembered of a process

    def digests():
        return [code(*modules, root=root) for modules in sources]

    return root, digests, digests()


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("rewards/literals.py", True),
        ("datamodules/sources/turns.py", True),
        ("datamodules/chat/form.py", True),
        ("datamodules/encoding.py", True),
        ("rewards/bfcl/java.py", False),
        ("rewards/__init__.py", False),
        ("datamodules/refinement/run.py", False),
        ("datamodules/chat/serving.py", False),
        ("datamodules/sft.py", False),
        ("datamodules/toolbox/functions.py", "of the toolbox"),
    ],
)
def test_the_key_changes_with_the_code_that_the_rows_go_through(copied, file, matters):
    root, digests, before = copied
    own = (root / file).read_text(encoding="utf-8")
    (root / file).write_text(own + "# another line\n", encoding="utf-8")
    changed = [now != digest for now, digest in zip(digests(), before, strict=True)]
    (root / file).write_text(own, encoding="utf-8")
    assert changed == [matters is True, bool(matters)]


def test_the_toolbox_counts_where_it_is_the_source(tiny_tokenizer, rows_file):
    settings = EncodingSettings(tiny_tokenizer, "skip", "last", cache.PAPER, False)
    files = [cache._key(path, "same", settings) for path in ("toolbox:train", "toolbox", rows_file)]
    assert files[0] == files[1] != files[2]  # the source itself is told apart by its fingerprint, here the same
