"""Sampling completions from the policy: token ids in, token ids out."""

from lightning_modules.rollout.generation import Completion, Generator
from lightning_modules.rollout.hf_generator import HFGenerator
from lightning_modules.rollout.vllm_generator import VLLMGenerator

__all__ = ["Completion", "Generator", "HFGenerator", "VLLMGenerator"]
