import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from training_runs import script_on_ranks

from lightning_modules.generators import engine_group
from lightning_modules.generators.engine_group import EngineGroup, ranks_of_node

SCRIPT = """
import json, pathlib, sys
import torch.distributed as dist

sys.path.append(sys.argv[2])  # the module alone, not four imports of the whole package
from engine_group import EngineGroup

dist.init_process_group("gloo")
rank = dist.get_rank()
group = EngineGroup(2)
try:
    EngineGroup(3)
except ValueError as error:
    refused = str(error)
seen = []

def answer(requests):
    seen.append(requests)
    return [f"{request} answered by {rank}" for request in requests]

answers = [group.ask(f"question {i} of {rank}", answer) for i in (1, 2)]
found = {"leads": group.leads, "answers": answers, "seen": seen, "refused": refused}
pathlib.Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()  # ends Gloo's threads, which abort where they outlive the interpreter
"""


@pytest.mark.ranks
def test_four_ranks_and_two_engines(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    done = script_on_ranks(script, tmp_path, Path(engine_group.__file__).parent, ranks=4)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert [rank["leads"] for rank in ranks] == [True, False, True, False]
    assert ranks[3]["answers"] == ["question 1 of 3 answered by 2", "question 2 of 3 answered by 2"]
    assert ranks[0]["seen"] == [["question 1 of 0", "question 1 of 1"], ["question 2 of 0", "question 2 of 1"]]
    assert ranks[1]["seen"] == []
    assert "tensor_parallel_size 3 does not divide the 4 ranks" in ranks[0]["refused"]


def test_one_process_answers_itself():
    group = EngineGroup(1)
    assert group.leads and group.ask(3, lambda requests: [request + 1 for request in requests]) == 4
    with pytest.raises(ValueError, match="tensor_parallel_size 2 does not divide the 1 ranks"):
        EngineGroup(2)


def test_ranks_wait_on_the_cpu_as_long_as_they_are_told_to(monkeypatch):
    asked = {}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "new_subgroups", lambda size, **options: (asked.update(options), None))
    assert EngineGroup(2, timeout=7200).first == 2
    assert asked == {"backend": "gloo", "timeout": timedelta(hours=2)}


@pytest.mark.parametrize(
    ("nodes", "size", "count"),
    [
        ("aaaabbbb", 1, 4),
        ("aaaabbbb", 2, 4),
        ("aaaaaaaa", 4, 8),
        ("ab", 1, 1),
        ("a", 1, 1),
        ("abababab", 1, 1),  # dealt in turn
        ("aaaaaabb", 2, 2),
        ("aabbbbbb", 1, 1),
        ("aaabbb", 2, 2),  # an engine over two nodes, which is refused elsewhere
    ],
)
def test_the_ranks_of_a_node_are_counted_where_nodes_are_alike(monkeypatch, nodes, size, count):
    monkeypatch.setattr(engine_group, "of_every_rank", lambda own: list(nodes))
    assert ranks_of_node(size) == count
