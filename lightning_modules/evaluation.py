"""The base of all modules: load a model and its tokenizer, generate, score completions, log the metrics."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedTokenizerFast

from datamodules.base import XLAMDataModule
from datamodules.chat.form import ChatForm
from datamodules.chat.serving import same_prompts
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.example import Example
from datamodules.loading import PromptBatch
from datamodules.packing import Encoded
from datamodules.system.arguments import declared
from lightning_modules.checkpointing.identity import check_run, check_same_model, fingerprint, identity
from lightning_modules.generators import Completion, Generator, HFGenerator, VLLMGenerator
from lightning_modules.generators.base import HoldsWeights
from lightning_modules.metrics import CallAccuracy, TargetLoss
from lightning_modules.policy.documents import score_documents
from lightning_modules.policy.generation_config import stop_ids
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM, build_policy
from lightning_modules.policy.precision import check_precision
from lightning_modules.policy.probe import probe_everywhere
from lightning_modules.policy.row_checks import check_rows_fit, check_vocabulary
from lightning_modules.policy.unshard import is_sharded, unsharded_copy
from lightning_modules.ranks import failing_together
from lightning_modules.rollout.rollout import Rollout, score_completion
from lightning_modules.strategies import FSDP1, FSDP2
from rewards import FunctionCallReward

SANITY_ROWS = 2  # validated on, over all ranks, before the first step


@declared
class EvaluationModule(LightningModule):
    """Validates, tests and predicts with a causal language model by generating completions and scoring them.

    Args:
        init_from: Where the weights come from: a run folder (its `hf/`), a Hugging Face folder or a hub id.
        attn_implementation: Attention kernel, by its name in transformers: "sdpa", "eager", "flash_attention_2".
        generator: Samples completions in validation, test and predict; greedy, 256 tokens at most, when None.
        reward: Scores completions; the strict reward when None.
    """

    def __init__(
        self,
        init_from: str,
        attn_implementation: str = "sdpa",
        generator: Generator | None = None,
        reward: FunctionCallReward | None = None,
    ) -> None:
        super().__init__()
        self.init_from = init_from
        self.attn_implementation = attn_implementation
        self.generator = generator or HFGenerator(max_new_tokens=256)
        self.reward = reward or FunctionCallReward()
        self.reward_functions: list[Callable[..., Any]] = [self.reward]  # a completion earns rewards from them
        self.accuracy = CallAccuracy()
        self.target_loss = TargetLoss()
        self.policy: ScoredCausalLM | None = None
        self.packed, self.why_not_packed = True, ""  # whether documents share a row; set when the model is loaded
        self.shares_prefixes = False  # whether rollouts of a prompt share it in a row; set then, too
        self.sizes_of_weights: dict[str, torch.Size] = {}  # of the policy, before any strategy cuts it into shards
        self.generating: tuple[ScoredCausalLM, ...] = ()  # what evaluations generate with, hidden from torch
        self.derived_hash = ""  # see `derived_fingerprint`
        self.logged: dict[str, float] = {}  # what was logged last, for callbacks

    @property
    def method(self) -> str:
        """Name of the method, as run folders and TensorBoard have it."""
        return type(self).__name__.removesuffix("Module").lower()

    @property
    def fitting(self) -> bool:
        """Whether the trainer is in `fit`."""
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    @property
    def strategy(self) -> Strategy | None:
        """The trainer's strategy; None in a notebook without a trainer."""
        return self._trainer.strategy if self._trainer else None

    @property
    def data(self) -> LightningDataModule | None:
        """The run's data; None in a notebook without a trainer, or with loaders alone."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def form(self) -> ChatForm | None:
        """Chat form of the run's data, for requests and answers; None for data without one."""
        return getattr(self.data, "form", None)

    def setup(self, stage: str) -> None:
        """Validate the settings before any weight is loaded.

        Raises:
            ValueError: See `check_precision` and `check_generator`.
        """
        check_precision(str(self.trainer.precision), lora=False, learning_rate=None)
        self.check_generator(lora=None)

    def check_generator(self, lora: LoRA | None) -> None:
        """Raise if the generator cannot serve this run, whose adapters have these settings.

        Raises:
            ValueError: See `VLLMGenerator.check`.
        """
        if isinstance(self.generator, VLLMGenerator):
            self.generator.check(lora, str(self.trainer.precision), self.strategy.root_device)

    def configure_model(self) -> None:
        """Load tokenizer and weights, once; Lightning calls this when strategy, device and precision are known."""
        if self.policy is not None:
            return
        with failing_together():
            self.tokenizer = self.load_tokenizer()
            policy = self.load_policy()
            check_vocabulary(self.tokenizer, policy.causal_lm)
            self.check_rows_fit(self.tokenizer, policy)
        self.stop_ids = stop_ids(self.tokenizer, policy.causal_lm.generation_config)
        self.sizes_of_weights = {name: weight.shape for name, weight in policy.state_dict().items()}
        mixed = self._trainer is not None and self._trainer.precision == "bf16-mixed"
        self.pack(policy, probe_everywhere(policy, self.strategy, mixed))
        self.place(policy)

    def check_rows_fit(self, tokenizer: PreTrainedTokenizerFast, policy: ScoredCausalLM) -> None:
        """Raise if rows of the run are another tokenizer's, or they or their completions do not fit into the model.

        Raises:
            ValueError: Saying which tokenizers these are; also see `policy.row_checks.check_rows_fit`.
        """
        if isinstance(self.data, XLAMDataModule) and not same_prompts(self.data.tokenizer, tokenizer):
            raise ValueError(  # Python alone can name the two apart
                f"data.tokenizer {self.data.tokenizer.name_or_path} is not the tokenizer of model.init_from "
                f"{self.init_from} (other vocabulary or chat template), so that the model would read other words than "
                "the rows have: give both the same."
            )
        cut = isinstance(self.generator, HoldsWeights)  # vLLM ends completions at the last position
        check_rows_fit(tokenizer, policy.causal_lm, self.data, 0 if cut else self.generator.max_new_tokens)

    def load_policy(self, **options: Any) -> ScoredCausalLM:
        """The model of `init_from`, not yet in shards.

        Args:
            **options: More of `build_policy`.
        """
        sends = isinstance(self.strategy, FSDP2) and self.strategy.world_size > 1 and self.strategy.is_global_zero
        return build_policy(
            self.init_from,
            attn_implementation=self.attn_implementation,
            dtype=torch.get_default_dtype(),  # float32, or what `trainer.precision` *-true has set
            empty=isinstance(self.strategy, FSDP2) and self.strategy.global_rank > 0,  # it sends them the weights
            in_files=sends,
            **options,
        )

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the model, with the chat template of the run's data."""
        own = getattr(self.data, "chat_template", None)  # of data that save no hyperparameters
        return load_tokenizer(self.init_from, getattr(self.data, "hparams", {}).get("chat_template", own))

    def pack(self, policy: ScoredCausalLM, leak: str) -> None:
        """Set whether documents share rows, as `data.packing` says and the model allows.

        Args:
            policy: The model.
            leak: Why documents in one row of this model see each other; empty if they do not.

        Raises:
            ValueError: If they do, and `data.packing` is on.
        """
        wanted = getattr(self.data, "hparams", {}).get("packing", "auto")
        if leak and wanted == "on":
            raise ValueError(
                f"data.packing is on, but {self.init_from} (model_type {policy.causal_lm.config.model_type}) does not "
                f"keep documents apart: {leak}. Set data.packing to auto."
            )
        self.packed = policy.packed = wanted != "off" and not leak
        self.shares_prefixes = self.packed and policy.shares_prefixes
        self.why_not_packed = leak if wanted == "auto" else "data.packing is off"

    def place(self, policy: ScoredCausalLM) -> None:
        """Keep the loaded model as `policy`, sharded if the strategy shards."""
        self.policy = self.shard(policy)

    def shard(self, policy: ScoredCausalLM) -> ScoredCausalLM:
        """The model sharded by the strategy, or unchanged if that does not shard."""
        return self.strategy.shard(policy) if isinstance(self.strategy, FSDP1 | FSDP2) else policy

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the module to a device; dtypes stay what `configure_model` has given each tensor.

        Under `trainer.precision` *-true Lightning asks for a dtype of everything, which would round what loading has
        kept in float32: rotary frequencies and other buffers, adapters, a learnable alpha.
        """
        kwargs.pop("dtype", None)
        places = [arg for arg in args if not isinstance(arg, torch.dtype)]
        return super().to(*places, **kwargs) if places or kwargs else self

    def generating_policy(self) -> ScoredCausalLM:
        """The model to generate with: the policy or, if it is sharded, an unsharded copy (a collective).

        A generator that holds the weights in an engine of its own takes the shards of FSDP2 as they are. The copy has
        the dtype that the policy computes in, copies of its adapters, and lies on the device that the policy computes
        on, also where the shards are offloaded.
        """
        streams = False
        if isinstance(self.generator, HoldsWeights):
            longest = getattr(self.data, "longest_prompt", None)  # of data that say so
            self.generator.prepare(str(self.trainer.precision), longest)
            streams = not isinstance(self.policy, FullyShardedDataParallel)
        if streams or not is_sharded(self.policy):
            return self.policy
        half = str(self.trainer.precision).startswith("bf16")
        return unsharded_copy(self.policy, torch.bfloat16 if half else None, self.device)

    def on_validation_start(self) -> None:
        """Unshard the policy, once for all batches."""
        self.generating = (self.generating_policy(),)
        self.generating[0].packed = self.packed

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def on_validation_end(self) -> None:
        """Free the unsharded copy, and the memory of a generator's engine."""
        self.generating = ()
        self.rest_generator(stale=self.fitting)  # in a fit the policy learns before the next call

    on_test_end = on_validation_end
    on_predict_end = on_validation_end

    def rest_generator(self, stale: bool = False) -> None:
        """Let a generator that holds weights of its own free memory; see `HoldsWeights.rest`."""
        if isinstance(self.generator, HoldsWeights):
            self.generator.rest(stale)

    def evaluate_prompts(self, batch: PromptBatch) -> list[Rollout]:
        """Generate one completion per prompt; score it and count it in the metrics where the right answer is known."""
        rollouts = []
        ids = [example.id for example in batch.examples]
        completions = self.generator(self.generating[0], batch.prompt_ids, ids, stop_ids=self.stop_ids)
        for example, prompt, (completion, *_) in zip(batch.examples, batch.prompt_ids, completions, strict=True):
            rollout = self.score(example, prompt, completion)
            if rollout.result is not None:
                self.accuracy.update(rollout)
            rollouts.append(rollout)
        return rollouts

    def score(self, example: Example, prompt: Sequence[int], completion: Completion) -> Rollout:
        """Decode and parse a completion and, where the right answer is known, score it with `reward`."""
        return score_completion(self.tokenizer, self.reward, example, prompt, completion)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Rollout]:
        """Generate for and score one batch of prompts, and score its references; callbacks receive the rollouts."""
        if self.trainer.sanity_checking:
            mine = range(self.global_rank, SANITY_ROWS, self.trainer.world_size)  # as rows are dealt to ranks
            batch = batch.first(len(mine))
        if batch.documents is not None:
            self.score_references(batch.documents)
        return self.evaluate_prompts(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Rollout]:
        """Generate for and score one batch of prompts; callbacks receive the rollouts."""
        return self.evaluate_prompts(batch)

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Generate for one batch of prompts; JSON rows (`Rollout.as_row`), for Lightning copies no frozen object."""
        return [rollout.as_row() for rollout in self.evaluate_prompts(batch)]

    def score_references(self, documents: Sequence[Encoded]) -> None:
        """Update `target_loss` with log-probabilities of the reference answers; draws no random number."""
        for logprobs, segments, rows in score_documents(self.generating[0], documents, self.packed, self.device):
            self.target_loss.update(-logprobs, segments, rows)
        if not documents:  # on every rank, so that all reduce
            self.target_loss.update(*torch.zeros(3, 0, dtype=torch.long, device=self.device))

    def evaluated(self) -> dict[str, float]:
        """Metrics of an evaluation, reduced over ranks; their counts are then reset."""
        metrics = self.accuracy.compute()
        self.accuracy.reset()
        if self.target_loss.update_called:
            metrics |= self.target_loss.compute()
            self.target_loss.reset()
        return metrics

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of `CallAccuracy` and `TargetLoss` over all ranks."""
        self.log_metrics(self.evaluated())

    on_test_epoch_end = on_validation_epoch_end

    def log_metrics(self, metrics: dict[str, float], shown: str | None = None) -> None:
        """Log metrics that are already reduced over ranks, against the number of optimizer steps taken.

        Args:
            metrics: Values by name; they stay in `logged` until the next ones are logged.
            shown: The one that the progress bar shows.
        """
        self.logged = dict(metrics)
        if shown in metrics:
            self.log(shown, metrics[shown], prog_bar=True, batch_size=1)
        others = {name: value for name, value in metrics.items() if name != shown}
        self.log_dict(others | {"step": float(self.global_step)}, batch_size=1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise if the checkpoint is of another model; a strategy that shards has done so, and loaded it.

        Raises:
            ValueError: See `check_checkpoint`.
        """
        if not isinstance(self.strategy, FSDP1 | FSDP2):
            self.check_checkpoint(checkpoint, {name: tuple(w.shape) for name, w in checkpoint["state_dict"].items()})

    def check_checkpoint(self, checkpoint: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise if a checkpoint is of another model or tokenizer, before any weight is changed.

        Args:
            checkpoint: What it holds beside weights and optimizer states.
            shapes: Names and shapes of its weights.

        Raises:
            ValueError: Saying what differs.
        """
        names = [name for name, _ in self.named_parameters()]
        ours = {name: tuple(p.shape) for name, p in self.named_parameters() if not name.startswith("policy.")}
        ours |= {f"policy.{name}": tuple(size) for name, size in self.sizes_of_weights.items()}
        check_same_model(shapes, {n: size for n, size in ours.items() if not self.is_derived(n)}, self.init_from)
        needs = any(map(self.is_derived, names))  # not in a validation, which has no frozen reference
        check_run(checkpoint, self.identity(derived=needs))

    def identity(self, derived: bool = True) -> dict[str, Any]:
        """Entries of a checkpoint that say which run it belongs to; `derived` is False where the run needs no hash."""
        return identity(self.init_from, self.tokenizer, self.form, self.derived_fingerprint() if derived else None)

    def is_derived(self, name: str) -> bool:
        """Whether a weight is left out of checkpoints, because it is as `init_from` has it."""
        return False

    def derived_weights(self) -> dict[str, Tensor]:
        """The weights that checkpoints leave out; of a sharded model this rank's shards, a collective."""
        return {name: weight for name, weight in get_model_state_dict(self).items() if self.is_derived(name)}

    def derived_fingerprint(self) -> str:
        """Hash of `derived_weights`, computed once, for they never change; a collective where they are sharded."""
        if not self.derived_hash:
            self.derived_hash = fingerprint(self.derived_weights())
        return self.derived_hash
