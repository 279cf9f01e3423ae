import pytest
from lightning.pytorch import seed_everything
from recorder import batches_of_a_run

from datamodules.loading import ResumableLoader, epoch_order, resolve_seed


def loader(rows=10, batch_size=3, seed=0, digest="ab"):
    return ResumableLoader(rows, batch_size, list, seed, digest)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    assert sorted(epoch_order(50, 1, 2)) == list(range(50))
    first = epoch_order(50, 1, 2)
    assert epoch_order(50, 1, 3) != first  # and is kept in its place
    assert epoch_order(50, 1, 2) == first
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_a_seed_that_is_not_given_is_that_of_the_run_or_0():
    assert [resolve_seed(seed) for seed in (None, 5)] == [0, 5]
    for given in (7, None):  # None, or `seed_everything: true`, takes what there is
        seed_everything(given)
        assert [resolve_seed(seed) for seed in (None, 5, 0)] == [7, 5, 0]


def test_an_epoch_has_every_row_once_and_the_last_batch_is_partial():
    batches = list(loader())
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    assert len(loader()) == 4
    assert sorted(row for batch in batches for row in batch) == list(range(10))


def test_state_resumes_at_every_batch_and_iterating_again_does_not_start_over():
    through = loader()
    expected = [batch for _ in range(3) for batch in through]  # three epochs of four batches
    assert expected[:4] != expected[4:8]
    for k in range(1, 10):
        first = loader()
        stream = iter(first)
        for n in range(k):
            if n and n % len(first) == 0:
                stream = iter(first)
            assert next(stream) == expected[n]
        second = loader(seed=99)
        second.load_state_dict(first.state_dict())
        iter(second)
        assert next(iter(second)) == expected[k]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 11}, "training rows is 11 in this run and was 10 in the one that wrote the checkpoint"),
        ({"batch_size": 2}, r"data\.batch_size is 2 in this run and was 3 "),
        ({"digest": "cd"}, "the training rows are not those of the run that wrote the checkpoint, though as many"),
    ],
)
def test_state_of_other_batches_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        loader(**change).load_state_dict(loader().state_dict())


def test_a_state_that_does_not_say_which_rows_it_is_of_resumes():
    state = loader().state_dict()
    del state["digest"]  # as of an earlier version
    resumed = loader()
    resumed.load_state_dict(state | {"batch": 2})
    assert resumed.batch == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [None, 3])
def test_resumed_trainer_takes_the_very_next_batch(tmp_path, limit):
    """Four batches an epoch: resumed inside the first epoch, at its end (4, or 3 if limited), and inside the second."""

    def run(folder, ckpt_path=None):
        return batches_of_a_run(loader(), folder, 10, ckpt_path, limit_train_batches=limit)

    expected = run(tmp_path)
    assert len(expected) == 10
    assert sorted(row for batch in expected[:4] for row in batch) == list(range(10))
    for k in (1, 3, 4, 6, 8):
        assert run(tmp_path / str(k), tmp_path / f"step={k}.ckpt") == expected[k:], k
