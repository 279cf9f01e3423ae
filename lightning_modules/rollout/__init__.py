"""From prompts to a rollout buffer: sample groups of completions, score them, compute advantages, pack."""

from lightning_modules.generators import HFGenerator, VLLMGenerator  # where configs of before name them

__all__ = ["HFGenerator", "VLLMGenerator"]
