"""Fixtures shared by the test folders: a tokenizer trained in memory and a random model small enough for any test.

Tests run on the CPU where there are GPUs, too, on several of which Lightning would start pytest once for each.
`FUNREASON_GPU_TESTS=1 pytest ...` shows tests the GPUs; name the files that need them.
"""

import gc
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # the process that hands out tests imports this file, too, and needs none of it
    from transformers import PreTrainedTokenizerFast

    from datamodules.chat.form import ChatForm
    from datamodules.example import Example

if not os.environ.get("FUNREASON_GPU_TESTS"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA starts, and for the processes that tests start

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "<think>The user wants the weather in Paris, so get_weather fits.</think>\n\n[get_weather(city='Paris', days=2)]",
    "<think>No tool fits.</think>\n\n[]",
    '[{"name": "get_weather", "description": "Weather", "parameters": {"city": {"type": "str"}}}]',
]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among what imports and tests are made of: that took a tenth of the time."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.fixture(autouse=True)
def no_seed_of_an_earlier_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run leaves its seed in the environment, where the next test would find it."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """Byte-level BPE of 320 ids with a Qwen-style ChatML template: any text survives encode and decode."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    # The pattern of Qwen2: AutoTokenizer puts it in for every folder whose model is a Qwen2, whatever was saved.
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def make_model_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: "PreTrainedTokenizerFast"
) -> Callable[..., Path]:
    """Hugging Face folder (safetensors, tokenizer, chat template) of a random two-layer Qwen2 of given sizes."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def make(**sizes: int) -> Path:
        folder = tmp_path_factory.mktemp("tiny-model")
        config = Qwen2Config(
            vocab_size=len(tiny_tokenizer),
            intermediate_size=64,
            num_hidden_layers=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id,
            initializer_range=0.2,  # far from uniform: greedy decoding and temperatures have something to differ on
            **sizes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            Qwen2ForCausalLM(config).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model_dir(make_model_dir: Callable[..., Path]) -> Path:
    """The model of most tests."""
    return make_model_dir(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="session")
def teach(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a run folder, exported as a run exports it, of a model that knows the answers of a few rows by heart."""
    import torch

    from datamodules.chat.segments import encode_texts, prompt_text, target_text
    from datamodules.chat.tokenizer import load_tokenizer
    from lightning_modules.checkpointing.export import export_hf
    from lightning_modules.policy.model import build_policy

    def learn(model_dir: Path, form: "ChatForm", rows: "list[Example]", steps: int = 60) -> Path:
        policy, tokenizer = build_policy(str(model_dir)), load_tokenizer(str(model_dir))
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
        prompts = [prompt_text(tokenizer, row, form) for row in rows]
        documents = encode_texts(tokenizer, prompts, [target_text(row, form, tokenizer) for row in rows])
        for _ in range(steps):
            for row in documents:
                ids, segments = torch.tensor([row.input_ids]), torch.tensor([row.segments])
                targets = ids[:, 1:].where(segments[:, 1:] > 0, -100)
                places = torch.arange(ids.shape[1] - 1)[None]
                policy(ids[:, :-1], places, targets).logprobs.mean().neg().backward()
            optimizer.step()
            optimizer.zero_grad()
        folder = tmp_path_factory.mktemp("run")
        export_hf(policy, tokenizer, folder / "hf", form=form)
        return folder

    return learn
