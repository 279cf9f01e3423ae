import numpy as np

from datamodules.holdout import hold_out, opening, query_places

QUERIES = [f"query {i}" for i in range(2000)]


def held(queries, fraction):
    return {query for query, out in zip(queries, hold_out(query_places(queries), fraction), strict=True) if out}


def test_share_is_near_the_fraction():
    # Binomial(2000, 0.1): mean 200, standard deviation 13.4; four of them are 54.
    assert abs(len(held(QUERIES, 0.1)) - 200) < 54
    assert held(QUERIES, 0.0) == set()


def test_neither_order_nor_other_rows_move_a_row():
    expected = held(QUERIES, 0.1)
    assert held(QUERIES[::-1], 0.1) == expected
    assert held(QUERIES[::2], 0.1) == expected & set(QUERIES[::2])
    assert expected < held(QUERIES, 0.2)


def test_equal_queries_stay_together_and_small_sets_hold_out_one_query():
    places = query_places(["a", "b", "a", "c"])
    assert places[0] == places[2]
    assert hold_out(places, 1e-9).sum() in (1, 2)
    assert hold_out(np.array([0.5, 0.2, 0.9]), 0.01).tolist() == [False, True, False]


def test_rows_cut_from_one_conversation_have_its_first_request():
    before = '[{"role": "system", "content": "s"}, {"role": "user", "content": "first"}]'
    assert opening("second", before) == opening("third", before) == opening("first", "[]") == "first"
    assert opening("alone", '[{"role": "system", "content": "s"}]') == "alone"
