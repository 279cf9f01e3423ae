"""Sampling completions from the policy: token ids in, token ids out."""

from lightning_modules.generators.base import Completion, Generator
from lightning_modules.generators.hf import HFGenerator
from lightning_modules.generators.vllm import VLLMGenerator
from lightning_modules.generators.vllm_server import VLLMServerGenerator

__all__ = ["Completion", "Generator", "HFGenerator", "VLLMGenerator", "VLLMServerGenerator"]
