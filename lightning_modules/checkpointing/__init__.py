"""Checkpoints: how they are read."""
