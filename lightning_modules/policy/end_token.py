"""Whether a model that trains by adapters can tell the token that ends an answer from others.

Base models have tokens that they never met: reserved ones, and those of a chat template that came later. Their rows of
the head are almost the same, and adapters leave the head as it is. So such a token is as likely as thousands of others
at the end of an answer, until hidden states single it out; they learn to for the rows that they are trained on, and
fail to on others.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from datamodules.chat.templates import end_of_turn_id

NEAR = 0.45  # of the median length of a row; a cosine of 0.9 where rows are equally long
MANY = 10  # rows so near; learnt tokens were seen to have none, unlearnt ones thousands (Gemma 3 270M: 6,446)


@torch.no_grad()
def rows_near(weight: Tensor, token: int) -> int:
    """How many other rows of the head, [V, H], lie so near to that of a token that their logits are about equal."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(weight, dim=1, dtype=dtype)
    squared = lengths.square() + lengths[token].square() - 2 * (weight @ weight[token]).to(dtype)
    return int((squared <= (NEAR * lengths.median()) ** 2).sum()) - 1


def unlearnt_end(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> str:
    """What is wrong with the token that ends an answer, and what to do; empty if it is one that the model has learnt.

    Args:
        tokenizer: Its chat template tells which token that is.
        model: The model, whole.
    """
    weight, end, eos = model.get_output_embeddings().weight, end_of_turn_id(tokenizer), tokenizer.eos_token_id
    near = rows_near(weight, end)
    if near < MANY:
        return ""
    advice = "train all weights (model.lora null)"
    if eos is not None and eos != end and rows_near(weight, eos) < MANY:
        eos_token = tokenizer.convert_ids_to_tokens(eos)
        advice = f"end answers with {eos_token!r}, which it knows (data.chat_template: chatml, or a file), or {advice}"
    name = tokenizer.convert_ids_to_tokens(end)
    return (
        f"{tokenizer.name_or_path} has not learnt {name!r}, with which its chat template ends answers: {near:,} other "
        f"tokens have about the same logit, whatever the text, and model.lora leaves them so. Answers to unfamiliar "
        f"prompts may not end. Better {advice}."
    )
