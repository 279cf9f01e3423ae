"""Mathematics of the training objectives: tensors in, loss and parts out; nothing here knows of models or trainers."""

from lightning_modules.objectives.logprobs import linear_logprobs, linear_scores
from lightning_modules.objectives.srml import Totals, multiscale_loss

__all__ = ["Totals", "linear_logprobs", "linear_scores", "multiscale_loss"]
