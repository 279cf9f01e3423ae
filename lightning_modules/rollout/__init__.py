"""Sampling completions from the policy: token ids in, token ids out."""

from lightning_modules.rollout.generation import Completion, Generator
from lightning_modules.rollout.hf_generator import HFGenerator

__all__ = ["Completion", "Generator", "HFGenerator"]
