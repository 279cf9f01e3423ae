"""From prompts to a buffer to learn from: sample groups, score them, compare within each, pack."""

from lightning_modules.generators import HFGenerator, VLLMGenerator  # where configs of before name them

__all__ = ["HFGenerator", "VLLMGenerator"]
