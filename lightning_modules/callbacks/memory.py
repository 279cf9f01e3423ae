"""Estimate of the memory of a training step, by arithmetic, for the table that a run begins with.

Letters: D hidden size, I intermediate size, L layers, A width of all attention heads together, V vocabulary, R rows of
a micro-batch and T tokens of a row; w bytes of a stored weight, c of a factor of a matrix product, r of a hidden state.
The formulas are those of dense decoders of the Llama kind (Qwen, Mistral, ...), of layers that are not compiled. Not
counted: what the allocator loses to fragments, CUDA's context, buffers of NCCL, for which `room` leaves some.
"""

from dataclasses import dataclass

from transformers import DynamicCache, PreTrainedConfig

from lightning_modules.objectives.logprobs import tile
from lightning_modules.policy.attention import BY_DOCUMENT
from lightning_modules.policy.recompute import BLOCK

RESERVED = 20
"""One part in so many of a GPU is left for what an estimate does not count: CUDA's context, buffers of NCCL, what the
allocator loses to fragments; 4 GiB of 80 GB. It is an assumption, and not measured."""
ENGINE_RESERVED = 2**30
"""So many bytes more where there is a rollout engine, whose process keeps a context while it sleeps; assumed, too."""


@dataclass(frozen=True)
class Plan:
    """The quantities on which the memory of a step depends.

    Attributes:
        config: Of the model, with the names that transformers gives sizes.
        trained: Parameters that learn, over all shards.
        frozen: Parameters that do not.
        precision: As `trainer.precision`.
        rows: R.
        length: T.
        checkpointing: Whether activations are computed again, layer by layer.
        every_n_layers: Of so many layers the first one's are, then.
        offload_activations: Whether what they are computed from is in the memory of the CPU meanwhile.
        scored: Targets among the tokens of a micro-batch; all of them when None.
        fsdp: Whether weights are gathered for use, be it on a single device.
        shards: Ranks that share one copy of the weights; 1 without sharding.
        hybrid: Whether FSDP2 also averages gradients over groups of such ranks.
        unsharded: Whether FSDP adds up whole gradients over the micro-batches of a step.
        offload: Whether weights and optimizer stay in the memory of the CPU.
        buckets: Whether DDP keeps gradients in its buckets besides.
        reference: Whether there is a frozen copy.
        attention: Its name in transformers.
        cuda: Whether the device is a GPU.
        copy: Bytes of weights to generate with, besides those that learn.
        cache: Bytes of keys and values where transformers generates.
        engine: Bytes of a rollout engine.
        sleeps: Whether the engine's are free again while the policy learns; copy and cache always are.
        compiled: Whether decoder layers are compiled, of which the arithmetic knows nothing.
        optimizer: The method that makes an optimizer of one's own, of which it knows as little; "" where it is AdamW.
    """

    config: PreTrainedConfig
    trained: int
    frozen: int
    precision: str
    rows: int
    length: int
    checkpointing: bool
    every_n_layers: int = 1
    offload_activations: bool = False
    scored: int | None = None
    fsdp: bool = False
    shards: int = 1
    hybrid: bool = False
    unsharded: bool = False
    offload: bool = False
    buckets: bool = False
    reference: bool = False
    attention: str = "sdpa"
    cuda: bool = True
    copy: int = 0
    cache: int = 0
    engine: int = 0
    sleeps: bool = True
    compiled: bool = False
    optimizer: str = ""

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.rows * self.length

    @property
    def w(self) -> int:
        """Bytes of a stored weight."""
        return 2 if self.precision == "bf16-true" else 8 if self.precision.startswith("64") else 4

    @property
    def c(self) -> int:
        """Bytes of a factor of a matrix product."""
        return 2 if "16" in self.precision else self.w

    @property
    def r(self) -> int:
        """Bytes of a number of a hidden state."""
        return self.c if self.fsdp else self.w  # FSDP gathers in c; autocast leaves embeddings as they are stored

    @property
    def again(self) -> int:
        """Layers whose activations are computed again."""
        return -(-self.config.num_hidden_layers // self.every_n_layers) if self.checkpointing else 0

    @property
    def counted(self) -> str:
        """What an estimate is of, in words."""
        text = "live tensors alone" + ", of layers as they are without model.torch_compile" * self.compiled
        return text + (f", as if {self.optimizer} made an AdamW" if self.optimizer else "")

    @property
    def learnt(self) -> int:
        """Bytes of a weight that learns: peft keeps adapters in float32 at least."""
        return self.w if self.everything else max(4, self.w)

    @property
    def table(self) -> int:
        """Parameters of the embedding, and as many of the head."""
        return self.config.vocab_size * self.config.hidden_size

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one."""
        return bool(self.config.tie_word_embeddings)

    @property
    def root(self) -> int:
        """Parameters that are in no layer: embedding and head."""
        return self.table * (1 if self.tied else 2)

    @property
    def block(self) -> int:
        """Parameters of a layer, adapters included."""
        return (self.trained + self.frozen - self.root) // self.config.num_hidden_layers

    @property
    def everything(self) -> bool:
        """Whether all weights learn, and not adapters alone."""
        return self.trained > self.frozen


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device, by part and by moment of a step.

    Attributes:
        always: What is held all the time: weights, optimizer, reference, casts.
        moments: What comes on top, by the moment of a step.
    """

    always: dict[str, int]
    moments: dict[str, dict[str, int]]

    @property
    def moment(self) -> str:
        """The moment of a step at which most is held."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part at that moment, without those of 0."""
        return {name: size for name, size in (self.always | self.moments[self.moment]).items() if size}

    @property
    def peak(self) -> int:
        """Bytes held at that moment."""
        return sum(self.parts.values())


def estimate(plan: Plan) -> Memory:
    """Memory of one device in a step; of an evaluation, in which nothing is learnt, that of generating alone."""
    learnt = plan.trained * plan.learnt // plan.shards
    weights = learnt + plan.frozen * plan.w // plan.shards
    always = {"weights": weights, "AdamW": 2 * learnt, "reference": weights if plan.reference else 0}
    if plan.offload:
        always = dict.fromkeys(always, 0)
    moments = learning(plan) if plan.trained else {}
    one = plan.table * plan.w if plan.fsdp and plan.copy else 0  # a weight at a time
    moments["unsharding the weights"] = {"copy": plan.copy, "gathered": one}
    moments["sampling rollouts"] = {"copy": plan.copy, "cache": plan.cache, "rollouts": plan.engine}
    return Memory(always, moments)


def learning(plan: Plan) -> dict[str, dict[str, int]]:
    """Bytes of each part by the moment of the last micro-batch of a step, which finds gradients of those before it."""
    layers, hidden = plan.config.num_hidden_layers, plan.config.hidden_size
    kept, passing = layer_bytes(plan)
    given = 0 if plan.offload_activations else plan.tokens * hidden * plan.r
    ends, full = end_bytes(plan), layers - plan.again  # layers that keep everything, and not their input alone
    last = plan.again and (layers - 1) % plan.every_n_layers == 0  # else what it kept is freed before others compute
    # Autograd keeps what autocast casts of weights for the backward pass, with recomputation that of one layer.
    casts = 0 if plan.fsdp or plan.w == plan.c else plan.block * plan.c
    # FSDP2 keeps what it reduced of every layer until the backward pass is over, besides the sum over micro-batches.
    in_layers = plan.trained - (plan.root if plan.everything else 0)
    reduced = in_layers * max(4, plan.w) // plan.shards if plan.hybrid else 0
    always = {"gradients": gradient_bytes(plan), "rollouts": 0 if plan.sleeps else plan.engine}
    backward = always | {"gathered": plan.root * plan.c if plan.fsdp else 0}  # until its gradients are reduced
    backward |= {"activations": plan.again * given + full * kept + ends, "casts": full * casts}
    layer = backward | {"casts": (full + min(plan.again, 1)) * casts, "layer": (kept if last else 0) + passing}
    # It is added to the embedding's where both are one, and FSDP reduces the two together.
    layer["waiting"] = plan.r * plan.table if plan.everything and (plan.fsdp or plan.tied) else 0
    # What the other layers kept is free again.
    first = layer | {"activations": given + kept + ends, "casts": casts, "layer": passing, "reduced": reduced}
    return {
        "the backward pass of the head": backward | {"head": head_bytes(plan)},
        "the backward pass of a layer": layer,
        "the backward pass of the first layer": first if plan.hybrid else layer,
        "the backward pass of the embedding": always | {"embedding": embedding_bytes(plan), "reduced": reduced},
    }


def gradient_bytes(plan: Plan) -> int:
    """Bytes of the gradients that are summed over micro-batches, with those of DDP's buckets or whole ones of FSDP."""
    shard = 0 if plan.offload else plan.trained * plan.learnt // plan.shards * (2 if plan.buckets else 1)
    whole = plan.trained * max(4, plan.w) if plan.fsdp and plan.unsharded else 0  # in the dtype they are reduced in
    return shard + whole


def room(plan: Plan, available: int) -> int:
    """Bytes that an estimate may fill of a device of so many: a GPU needs some for what is not counted."""
    if not plan.cuda:
        return available
    return available - available // RESERVED - (ENGINE_RESERVED if plan.engine else 0)


def has_room(plan: Plan, available: int) -> bool:
    """Whether a device of so many bytes has room for the estimate."""
    return estimate(plan).peak <= room(plan, available)


def layer_bytes(plan: Plan) -> tuple[int, int]:
    """Bytes that autograd keeps of a layer for its backward pass, and bytes on top of them in that pass."""
    c, r, squares = plan.c, plan.r, plan.rows * plan.length**2
    hidden, inner = plan.config.hidden_size, inner_of(plan.config)
    heads, _, width = heads_of(plan.config)
    wide = heads * width  # A
    # Each keeps its input in float32, and that scaled to 1; or what it was given, with the MLP's activation computed
    # again, too (`policy.recompute`).
    norms = 2 * (r if in_blocks(plan, hidden) else 4 + r) * hidden
    # Products of one input share it (q, k, v; gate, up), unless autocast rounds it for each.
    inputs = (2 if r == c else 5) * c * hidden
    # q, k, v, of which k and v are repeated for every head, and what comes out: by document in parts and joined again.
    attention = (5 if plan.attention == BY_DOCUMENT else 4) * c * wide
    mlp = (3 if in_blocks(plan, inner) else 4) * c * inner  # gate, silu(gate), up and their product
    # Adapters of half-precision weights are in float32 (peft), and each rounds its input to that.
    adapters = 0 if plan.everything or plan.w > 2 else 4 * (5 * hidden + wide + inner)
    # SDPA turns the boolean mask into numbers in every layer; eager attention keeps probabilities in float32 and c.
    mask = {"sdpa": c * squares, "eager": (4 + c) * heads * squares}.get(plan.attention, 0)
    # Gradients of the product and of one of its factors, or of both.
    passing = (3 if in_blocks(plan, inner) else 2) * c * inner * plan.tokens
    if plan.fsdp:  # this layer and the next one gathered; its gradients, and those to be reduced, in float32
        passing += 2 * c * plan.block
        passing += (c + 4) * plan.block if plan.everything else 0
    return plan.tokens * (norms + inputs + attention + mlp + adapters) + mask, passing


def end_bytes(plan: Plan) -> int:
    """Bytes that are kept beside the layers: of the last norm (input in float32, scaled, result) and of masks."""
    norm = (0 if in_blocks(plan, plan.config.hidden_size) else 4) + 2 * plan.r
    mask = plan.rows * plan.length**2 if plan.attention == "sdpa" else 0
    return plan.tokens * plan.config.hidden_size * norm + mask


def in_blocks(plan: Plan, width: int) -> bool:
    """Whether states of that width are computed again by blocks, as CPUs do it."""
    return not plan.cuda and plan.tokens * width > BLOCK


def head_bytes(plan: Plan) -> int:
    """Bytes that the backward pass of the head needs (`objectives.logprobs`)."""
    c, r = plan.c, plan.r
    targets = plan.tokens if plan.scored is None else plan.scored
    hidden, wide = plan.config.hidden_size, max(4, c)
    tokens, ids = (min(most, n) for most, n in zip(tile(not plan.cuda), (targets, plan.config.vocab_size), strict=True))
    # Of a tile log-probabilities, their gradient, and that as a factor; of its ids a factor, gradient and sum.
    narrow = c if c < 4 else 0
    logits = ids * (2 * wide + narrow) * (tokens + hidden)
    gradient = r * plan.table if plan.everything else 0
    layer = c * plan.block if plan.fsdp else 0  # the last one is gathered already
    states = (2 * r + wide + narrow) * hidden * targets  # with their gradient, its sum in float32, and as a factor
    return logits + gradient + states + layer


def embedding_bytes(plan: Plan) -> int:
    """Bytes of the last part of the backward pass, that of embedding and head; all activations are freed."""
    if not plan.everything:
        return 0
    if plan.fsdp:  # as in `layer_bytes`
        return (plan.c + 4) * plan.root
    return plan.w * plan.table * (2 if plan.tied else 1)  # that of a tied head has waited for it


def inner_of(config: PreTrainedConfig) -> int:
    """Intermediate size of an MLP, I."""
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def heads_of(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Heads of queries and of keys in a layer, and the width of one; without attention those of its states, or one."""
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", None) or 1
    keys = getattr(config, "num_key_value_heads", None) or heads
    return heads, keys, getattr(config, "head_dim", None) or config.hidden_size // heads


def cached_numbers(config: PreTrainedConfig, rows: int, length: int) -> int:
    """How many numbers keys and values of rows of that length are; a layer with a window keeps no more than that."""
    _, keys, width = heads_of(config)
    windows = [getattr(layer, "sliding_window", None) or length for layer in DynamicCache(config=config).layers]
    columns = sum(min(window, length) for window in windows)
    return 2 * rows * columns * keys * width


def adapters(config: PreTrainedConfig, rank: int) -> int:
    """Number of parameters of LoRA on all linear layers."""
    hidden, (heads, keys, width) = config.hidden_size, heads_of(config)
    # q and o, k and v, the three of the MLP
    ends = 2 * (hidden + heads * width) + 2 * (hidden + keys * width) + 3 * (hidden + inner_of(config))
    return config.num_hidden_layers * rank * ends
