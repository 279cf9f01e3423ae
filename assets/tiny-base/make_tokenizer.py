"""Make the tokenizer and the configuration of the tiny base model: `python assets/tiny-base/make_tokenizer.py FOLDER`.

The byte-level BPE learns no merge between letters and anything else, so that a word has the same tokens in a query, in
a chain of thought and in a call, whatever stands before it: a small model can then copy it. Otherwise text is split as
Qwen2 splits it, since `AutoTokenizer` reads every folder of a Qwen2 model with Qwen2's own rule. `<think>` and
`</think>` are tokens of their own, as in Qwen3.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2Tokenizer

from datamodules.toolbox.pretraining import make_document
from datamodules.toolbox.rows import make_corpus
from datamodules.toolbox.values import BANKS

VOCABULARY = 2304
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _texts() -> Iterator[str]:
    for index in range(6000):
        yield from (message["content"] for message in make_document(index, seed=1))
    for row in make_corpus("train", 3000, seed=1):
        yield from (row["query"], row["cot"], row["tools"])
    for words in BANKS.values():  # every word becomes one token, which a small model copies best
        yield from [" ".join(words)] * 2000


def make_tokenizer() -> Qwen2Tokenizer:
    """Train the tokenizer on the generator's training text."""
    trained = Tokenizer(models.BPE())
    letters_apart = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"), "isolated")
    qwen2_rule = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trained.pre_tokenizer = pre_tokenizers.Sequence([letters_apart, qwen2_rule])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(_texts(), trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=4096,
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_config(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    """The architecture: Qwen2 with about a million parameters."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.08,  # about 1 / sqrt(hidden_size): learns to copy in half the steps that 0.02 takes
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    made = make_tokenizer()
    made.save_pretrained(folder)
    make_config(made).save_pretrained(folder)
    print(f"{len(made)} tokens and the configuration: {folder}")
