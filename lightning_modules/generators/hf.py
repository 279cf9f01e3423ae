"""Batched generation with transformers alone: no engine beside the trainer."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from datamodules.loading import resolve_seed
from datamodules.system.arguments import declared
from lightning_modules.generators.base import Completion, check_sampling, config_stop_ids, names_of
from lightning_modules.generators.casting import cast_once
from lightning_modules.generators.decoding import Row, decode
from lightning_modules.generators.padding import GenerationMode, decodes, exactly, find_mode
from lightning_modules.generators.sampling import GumbelMax, row_key, sample
from lightning_modules.policy.dropout import evaluating
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.torch_compile import uncompiled


@declared
class HFGenerator:
    """Generates with `transformers`: a key-value cache of rows of like length, where waiting rows follow ended ones.

    A completion depends on the weights, `seed`, its prompt's name and its number among the prompt's samples: neither on
    the other rows of its batch nor on any global random state (up to the rounding of logits, which may differ in the
    last bits between batches of different shape). Settings in the model's own generation config, such as a repetition
    penalty, do not apply.

    A prompt is read once for all its samples. Under autocast the linear layers have copies of their weights in its
    dtype meanwhile, and the cache is of that dtype; on a CPU they have packed copies in any case.

    A model that does not allow all this, such as one whose cache holds more than keys and values, is recognised at its
    first call (`decodes`) and generates by transformers' own method. If padding or its cache changes what it generates
    (`find_mode`), only prompts of equal length share a batch, or there is no cache.

    Args:
        max_new_tokens: Tokens after which a completion is cut.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Sample only from the smallest set of tokens with this probability; 1 is all of them.
        token_budget: Bound on rows x (longest prompt + max_new_tokens) of a batch; one row is always let through.
        seed: Of the sampling noise; that of the run (`seed_everything`) when None.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If a setting is out of its range.
    """

    reports_logprobs = False  # its distribution is the policy's own

    def __init__(
        self,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        token_budget: int = 65536,
        seed: int | None = None,
        progress: bool = False,
    ) -> None:
        if max_new_tokens < 1 or token_budget < 1:
            raise ValueError(
                f"max_new_tokens and token_budget must be at least 1, got {max_new_tokens} and {token_budget}."
            )
        check_sampling(temperature, top_p)
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.token_budget = token_budget
        self.seed = resolve_seed(seed)
        self.progress = progress
        self._modes: dict[str, GenerationMode | None] = {}  # of each model so far

    def __call__(
        self,
        policy: ScoredCausalLM,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | int] | None = None,
        n: int = 1,
        stop_ids: Collection[int] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[Completion]]:
        """Sample `n` completions of each prompt; see `Generator`.

        Raises:
            ValueError: If a prompt is empty, `names` are not one per prompt, no stop id is known, or a setting is
                out of its range.
        """
        temperature = self.temperature if temperature is None else temperature
        top_p = self.top_p if top_p is None else top_p
        check_sampling(temperature, top_p)
        names = names_of(prompts, names)
        stop = config_stop_ids(policy) if stop_ids is None else list(stop_ids)
        rows = [
            [Row(prompt, row_key(self.seed, name, sample)) for sample in range(n)]
            for prompt, name in zip(prompts, names, strict=True)
        ]
        order = sorted(chain(*rows), key=lambda row: -len(row.prompt))  # so that too large a budget shows at once
        if order:
            with _generating(policy):
                mode = self._mode(policy.causal_lm)
                with (
                    cast_once(policy.causal_lm),
                    tqdm(total=len(order), desc="generate", disable=not self.progress) as bar,
                ):
                    for _ in self._ending(policy, order, mode, stop, temperature, top_p):
                        bar.update()
        return [[_completion(row.ids, stop) for row in samples] for samples in rows]

    def sync(self, policy: ScoredCausalLM) -> None:
        """Do nothing: the policy itself generates."""

    def _ending(
        self,
        policy: ScoredCausalLM,
        rows: list[Row],
        mode: GenerationMode | None,
        stop: list[int],
        temperature: float,
        top_p: float,
    ) -> Iterator[Row]:
        """Generate the `ids` of rows, longest prompts first, and yield each row as it ends."""
        if mode is None:
            choose = partial(_choose, temperature=temperature, top_p=top_p)
            yield from decode(policy.causal_lm, rows, choose, set(stop), self.max_new_tokens, self.rows_together)
            return
        for batch in self._batches(rows, mode.padded):
            prompts, keys = [row.prompt for row in batch], [row.key for row in batch]
            answers = self._generate(policy, prompts, keys, stop, temperature, top_p, mode.cached)
            for row, ids in zip(batch, answers, strict=True):
                row.ids = ids
                yield row

    def _mode(self, model: PreTrainedModel) -> GenerationMode | None:
        """How this model, or one of the same configuration, must `generate`, None if it need not; found out once."""
        key = f"{type(model)} {model.dtype} {model.config._attn_implementation} {model.config}"
        if key not in self._modes:
            with exactly(model):
                self._modes[key] = None if decodes(model) else find_mode(model)
        return self._modes[key]

    def _batches(self, rows: list[Row], padded: bool) -> Iterator[list[Row]]:
        """Rows of like length, or equal unless `padded`."""
        start = 0
        while start < len(rows):
            longest = len(rows[start].prompt)
            size = self.rows_together(longest)
            batch = [row for row in rows[start : start + size] if padded or len(row.prompt) == longest]
            yield batch
            start += len(batch)

    def _generate(
        self,
        policy: ScoredCausalLM,
        prompts: list[Sequence[int]],
        keys: list[int],
        stop: list[int],
        temperature: float,
        top_p: float,
        cached: bool,
    ) -> list[list[int]]:
        """Tokens generated in one batch by transformers; rows that stopped before the others go on with padding."""
        device = policy.causal_lm.device
        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        input_ids = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)])
        mask = torch.arange(width) >= torch.tensor(padding)[:, None]  # [B, width], False on the padding at the left
        processors = LogitsProcessorList()
        if temperature > 0:
            processors.append(GumbelMax(torch.tensor(keys, device=device), width, temperature, top_p))
        output = policy.causal_lm.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.long().to(device),
            logits_processor=processors,
            generation_config=GenerationConfig(
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                use_cache=cached,
                eos_token_id=stop or None,
                pad_token_id=stop[0] if stop else 0,
            ),
        )
        return output[:, width:].tolist()

    def rows_together(self, prompt_length: int) -> int:
        """Rows of a batch whose longest prompt has so many tokens."""
        return max(1, self.token_budget // (prompt_length + self.max_new_tokens))


def _completion(ids: list[int], stop: list[int]) -> Completion:
    """A row up to its first stop id."""
    for end, token in enumerate(ids, start=1):
        if token in stop:
            return Completion(ids[:end], "stop")
    return Completion(ids, "length")


def _choose(logits: Tensor, rows: list[Row], temperature: float, top_p: float) -> Tensor:
    """The next token of each row, [B]; of equal logits the first."""
    if temperature == 0:
        return logits.max(-1).indices  # several times as fast as argmax on a CPU
    keys = torch.tensor([row.key for row in rows], device=logits.device)
    positions = torch.tensor([len(row.ids) for row in rows], device=logits.device)
    return sample(logits, keys, positions, temperature, top_p)


@contextmanager
def _generating(policy: ScoredCausalLM) -> Iterator[None]:
    """Eval mode, no gradients, nothing compiled or of the model's own generation settings; put back afterwards."""
    model = policy.causal_lm
    config, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with evaluating(policy), torch.no_grad(), uncompiled(model):  # so checkpointed blocks do not refuse the cache
            yield
    finally:
        model.generation_config = config
