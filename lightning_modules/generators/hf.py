"""Batched generation with transformers alone: no engine beside the trainer, no copy of the weights."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from datamodules.loading import resolve_seed
from lightning_modules.generators.base import Completion, check_sampling, config_stop_ids, names_of
from lightning_modules.generators.padding import GenerationMode, find_mode
from lightning_modules.generators.sampling import GumbelMax, row_key
from lightning_modules.policy.model import ScoredCausalLM


class HFGenerator:
    """Generates with `transformers`: left-padded batches of like length, a key-value cache, an end when all rows ended.

    A completion depends on the weights, `seed`, its prompt's id and its number among the prompt's samples: neither on
    the other rows of its batch nor on any global random state (up to the rounding of logits, which may differ in the
    last bits between batches of different shape). Settings in the model's own generation config, such as a repetition
    penalty, do not apply.

    A model for which padding changes what is generated, or whose cache does, is recognised the first time
    (`find_mode`): then only prompts of equal length share a batch, and where need be there is no cache.

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
        token_budget: int = 16384,
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
        self._modes: dict[str, GenerationMode] = {}  # of each model so far

    def __call__(
        self,
        policy: ScoredCausalLM,
        prompts: Sequence[Sequence[int]],
        prompt_ids: Sequence[str | int] | None = None,
        n: int = 1,
        stop_ids: Collection[int] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[Completion]]:
        """Sample `n` completions of each prompt; see `Generator`.

        Raises:
            ValueError: If a prompt is empty, `prompt_ids` are not one per prompt, no stop id is known, or a setting is
                out of its range.
        """
        temperature = self.temperature if temperature is None else temperature
        top_p = self.top_p if top_p is None else top_p
        check_sampling(temperature, top_p)
        prompt_ids = names_of(prompts, prompt_ids)
        stop = config_stop_ids(policy) if stop_ids is None else list(stop_ids)
        rows = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(n)]
        completions: dict[tuple[int, int], Completion] = {}
        with _generating(policy), tqdm(total=len(rows), desc="generate", disable=not self.progress) as bar:
            mode = self._mode(policy.causal_lm) if rows else GenerationMode(True, True)
            for batch in self._batches(rows, [len(prompt) for prompt in prompts], mode.padded):
                keys = [row_key(self.seed, prompt_ids[prompt], sample) for prompt, sample in batch]
                rows_of_ids = [prompts[prompt] for prompt, _ in batch]
                answers = self._generate(policy, rows_of_ids, keys, stop, temperature, top_p, mode.cached)
                completions.update(zip(batch, answers, strict=True))
                bar.update(len(batch))
        return [[completions[prompt, sample] for sample in range(n)] for prompt in range(len(prompts))]

    def sync(self, policy: ScoredCausalLM) -> None:
        """Do nothing: the policy itself generates."""

    def _mode(self, model: PreTrainedModel) -> GenerationMode:
        """How this model, or one of the same configuration, generates; found out once."""
        key = f"{type(model)} {model.dtype} {model.config._attn_implementation} {model.config}"
        if key not in self._modes:
            self._modes[key] = find_mode(model)
        return self._modes[key]

    def _batches(
        self, rows: list[tuple[int, int]], lengths: list[int], padded: bool
    ) -> Iterator[list[tuple[int, int]]]:
        """Rows of like length, or equal unless `padded`; longest first, so that too large a budget shows at once."""
        rows = sorted(rows, key=lambda row: -lengths[row[0]])
        start = 0
        while start < len(rows):
            longest = lengths[rows[start][0]]
            size = self.rows_together(longest)
            batch = [row for row in rows[start : start + size] if padded or lengths[row[0]] == longest]
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
    ) -> list[Completion]:
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
        return [_completion(ids, stop) for ids in output[:, width:].tolist()]

    def rows_together(self, prompt_length: int) -> int:
        """Rows of a batch whose longest prompt has so many tokens."""
        return max(1, self.token_budget // (prompt_length + self.max_new_tokens))


def _completion(ids: list[int], stop: list[int]) -> Completion:
    """Cut a row at its first stop id; rows that stopped before the others of their batch go on with padding."""
    for end, token in enumerate(ids, start=1):
        if token in stop:
            return Completion(ids[:end], "stop")
    return Completion(ids, "length")


@contextmanager
def _generating(policy: ScoredCausalLM) -> Iterator[None]:
    """Eval mode, no gradients, and none of the model's own generation settings; all put back afterwards."""
    model, modes = policy.causal_lm, [(module, module.training) for module in policy.modules()]
    config, model.generation_config = model.generation_config, GenerationConfig()
    policy.eval()  # checkpointed blocks then neither recompute nor refuse the cache
    try:
        with torch.no_grad():
            yield
    finally:
        model.generation_config = config
        for module, training in modes:
            module.training = training
