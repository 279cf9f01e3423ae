"""Tiny random models of the families that people train: two or three layers, each kind of layer among them."""

from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

# What most families call their sizes; what a family has no name for is left out.
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # far from uniform
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
DELTA_NET = HYBRID | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LAYERWISE = {"global_head_dim": 8, "vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8}
NEMOTRON = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2, "eos_token_id": 2}
OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "init_std": 0.2,
    "eos_token_id": 2,
}
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "initializer_range": 0.2, "eos_token_id": 2}
XGLM = {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 512} | {
    "init_std": 0.2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """A family, and what is true of it.

    Attributes:
        kind: Its `model_type`.
        packed: Whether documents of a row are kept apart.
        sizes: What its config is given.
    """

    kind: str
    packed: bool
    sizes: dict = field(default_factory=dict)

    def config(self, vocabulary=320):
        return AutoConfig.for_model(self.kind, vocab_size=vocabulary, **self.sizes)

    def save(self, folder, tokenizer):
        """Random weights and a tokenizer in a folder, as `model.init_from` takes them."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(self.config(len(tokenizer)))
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # zero at the start, and then there is nothing to see
                    torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder


def seeing_model(folder):
    """The folder of a random Gemma 3 that can also see, as those from 4B on."""
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = layer | {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 320}
    eyes = layer | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text | {"pad_token_id": 0}, vision_config=eyes, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def like_llama(kind, packed=True, **sizes):
    return Family(kind, packed, SIZES | sizes)


FAMILIES = [
    like_llama("llama"),
    like_llama("qwen2", tie_word_embeddings=True),
    like_llama("qwen3"),
    like_llama("qwen3_moe", **EXPERTS),
    like_llama("gemma"),
    like_llama("gemma2", final_logit_softcapping=3.0, **SLIDING),
    like_llama("gemma3_text", **SLIDING),
    like_llama("gemma4_text", final_logit_softcapping=3.0, **LAYERWISE, **SLIDING),
    like_llama("mistral", sliding_window=6),
    like_llama("ministral", **SLIDING),
    like_llama("mixtral", **LOCAL_EXPERTS),
    like_llama("phi"),
    like_llama("phi3"),
    like_llama("olmo2"),
    like_llama("cohere", logit_scale=0.5),
    like_llama("granite", logits_scaling=4.0),
    like_llama("hyperclovax", logits_scaling=0.25),
    like_llama("glm4"),
    like_llama("smollm3"),
    like_llama("exaone4"),
    like_llama("ernie4_5"),
    like_llama("seed_oss"),
    like_llama("hunyuan_v1_dense"),
    like_llama("gpt_neox"),
    Family("gpt2", True, GPT),
    like_llama(
        "llama4_text",
        packed=False,
        attention_chunk_size=16,
        layer_types=["chunked_attention", "full_attention"],
        intermediate_size_mlp=64,
        **LOCAL_EXPERTS,
    ),
    like_llama("gpt_oss", packed=False, **LOCAL_EXPERTS, **SLIDING),
    like_llama("qwen3_5_text", packed=False, **DELTA_NET),
    like_llama("qwen3_next", packed=False, shared_expert_intermediate_size=16, **DELTA_NET, **EXPERTS),
    like_llama("kimi_linear", packed=False, linear_head_dim=8, linear_num_heads=4, **HYBRID, **LATENT, **LOCAL_EXPERTS),
    like_llama("nemotron_h", packed=False, **NEMOTRON),
    like_llama("bamba", packed=False, attn_layer_indices=[1], **MAMBA),
    like_llama("falcon_h1", packed=False, mamba_d_ssm=64, lm_head_multiplier=0.25, **MAMBA),
    like_llama(
        "granitemoehybrid",
        packed=False,
        shared_intermediate_size=16,
        logits_scaling=4.0,
        **HYBRID,
        **MAMBA,
        **LOCAL_EXPERTS,
    ),
    like_llama("jamba", packed=False, attn_layer_period=2, attn_layer_offset=1, num_experts=4, mamba_d_state=8),
    like_llama("minimax", packed=False, **HYBRID, **LOCAL_EXPERTS),
    like_llama("lfm2", packed=False, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    like_llama(
        "recurrent_gemma",
        packed=False,
        num_hidden_layers=3,
        lru_width=32,
        attention_window_size=16,
        logits_soft_cap=3.0,
    ),
    Family("opt", True, OPT),
    like_llama("biogpt"),
    Family("mpt", False, MPT),
    Family("xglm", False, XGLM),
]
