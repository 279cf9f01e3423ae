"""Ranks that stand for two nodes, as far as torchrun's variables say."""

import os


def stand_on_two_nodes():
    """Let the first half of the ranks be those of one node, and the others those of another."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) // 2
    os.environ |= {"GROUP_RANK": str(rank // ranks), "LOCAL_RANK": str(rank % ranks), "LOCAL_WORLD_SIZE": str(ranks)}
