"""What ranks tell one another."""

import pytest
import torch

from lightning_modules import ranks
from lightning_modules.ranks import failing_together, of_every_rank, over_ranks


def test_an_error_of_one_rank_is_raised_on_every_rank(monkeypatch):
    monkeypatch.setattr(ranks, "of_every_rank", lambda mine: ["another's", mine])
    with pytest.raises(ValueError, match="another's"), failing_together():
        pass
    with pytest.raises(OSError, match="this rank's"), failing_together():
        raise OSError("this rank's")


def test_without_a_process_group_there_is_one_rank():
    assert of_every_rank("mine") == ["mine"]
    assert over_ranks({"a": 1.0, "b": 2.5}, {"c": -3.0}, torch.device("cpu")) == ({"a": 1.0, "b": 2.5}, {"c": -3.0})
    with failing_together():
        pass


def test_numbers_are_reduced_in_one_collective(monkeypatch):
    """Rank 0 gives a = 1, b = 2 and the peak 5, rank 1 gives a = 10, b = 0.5 and the peak -1."""

    def all_gather(every_rank, mine):
        every_rank[0].copy_(mine)
        every_rank[1].copy_(torch.tensor([10.0, 0.5, -1.0], dtype=torch.float64))

    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(ranks.dist, name, lambda value=value: value)
    monkeypatch.setattr(ranks.dist, "all_gather", all_gather)
    sums, peaks = over_ranks({"a": 1.0, "b": 2.0}, {"c": 5.0}, torch.device("cpu"))
    assert sums == {"a": 11.0, "b": 2.5} and peaks == {"c": 5.0}
