"""Tiny random models of many families, saved as checkpoints: what the exactness tests run on.

Four blocks each. Weights are drawn wide enough that greedy decoding does not fall into a loop: a
test on ids that repeat would prove nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

BLOCKS = 4
VOCAB = 160


@dataclass(frozen=True, eq=False)
class Architecture:
    """One family with the config keys that make it tiny."""

    family: str
    keys: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    """If there are several of one family."""
    common: bool = True
    """Whether the family goes by the usual names of config keys."""
    spread: float = 1.0
    """How wide weights are drawn; this, the embedding's share of it and the seed are chosen such
    that the reference ids vary."""
    embedding: float = 1.0
    seed: int = 0

    def __str__(self) -> str:
        return self.name or self.family

    def build(self) -> PreTrainedModel:
        """Return the model with random weights, in float32."""
        # Copied, since a config completes the dicts that it is given.
        keys = copy.deepcopy((_COMMON if self.common else {}) | self.keys)
        config = CONFIG_MAPPING[self.family](**keys)
        torch.manual_seed(self.seed)
        model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(
            config, dtype=torch.float32
        )
        _draw(model, self.spread, self.embedding)
        return model.eval()


_COMMON: dict[str, Any] = {
    "num_hidden_layers": BLOCKS,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}

_GPT2_LIKE: dict[str, Any] = {
    "n_layer": BLOCKS,
    "n_embd": 48,
    "n_head": 4,
    "n_positions": 256,
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": None,
}

_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "head_dim": 8,
}


def _draw(model: PreTrainedModel, spread: float, embedding_scale: float) -> None:
    """Replace every weight by a random one: matrices keep the size of what flows through them."""
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.normal_(0.0, embedding_scale * embedding.shape[-1] ** -0.5)
        for name, weight in model.named_parameters():
            if weight is embedding:
                continue
            if weight.dim() >= 2:
                weight.normal_(0.0, spread * weight.shape[-1] ** -0.5)
            elif not any(part in name for part in ("A_log", "dt_bias", ".D")):
                weight.add_(torch.randn_like(weight) * 0.1)


RAGGED = [
    Architecture("llama", spread=1.5),
    Architecture("llama", {"tie_word_embeddings": True}, name="llama_tied", spread=1.5),
    Architecture("mistral", {"sliding_window": 16}, seed=1),
    Architecture(
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        spread=1.5,
    ),
    Architecture("qwen3", spread=2.0, seed=2),
    Architecture("gemma", spread=2.0),
    Architecture(
        "gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 12}, spread=2.0, embedding=0.2
    ),
    Architecture(
        "gemma3_text",
        {"sliding_window": 16, "query_pre_attn_scalar": 12, "tie_word_embeddings": False},
        spread=2.0,
        seed=3,
    ),
    Architecture(
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
        spread=1.5,
    ),
    Architecture("gpt2", _GPT2_LIKE, common=False, spread=4.0, seed=2),
    Architecture("opt", {"ffn_dim": 64, "word_embed_proj_dim": 48}, spread=3.0, seed=1),
    Architecture(
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        spread=1.5,
    ),
    Architecture("qwen3_moe", _MOE, spread=1.5, seed=1),
    Architecture("olmoe", _MOE, spread=2.0),
    Architecture("deepseek_v2", {**_MLA, "n_shared_experts": 1}, spread=1.5),
    Architecture("deepseek_v3", {**_MLA, "n_shared_experts": 1}, seed=2),
    Architecture("phi", spread=3.0),
    Architecture("phi3", {"sliding_window": None}, spread=1.5),
    Architecture("cohere", spread=1.5, seed=1),
    Architecture("cohere2", {"sliding_window": 16}, spread=1.5),
    Architecture(
        "granite", {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}
    ),
    Architecture("granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture("olmo", seed=1),
    Architecture("olmo2", seed=4),
    Architecture("olmo3", {"sliding_window": 16}, seed=3),
    # Wider, and float32 itself is further from the truth than the tolerance.
    Architecture("starcoder2", {"sliding_window": 16}, spread=2.5),
    Architecture("smollm3", spread=1.5),
    Architecture("glm", spread=1.5, seed=1),
    Architecture("glm4", spread=1.5, seed=2),
    Architecture("gpt_neox", spread=2.0),
    Architecture(
        "stablelm",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
        spread=1.5,
        seed=1,
    ),
    Architecture("nemotron"),
    Architecture("exaone4", {"sliding_window": 16, "sliding_window_pattern": 4}, seed=3),
    Architecture("ernie4_5", spread=2.0),
    Architecture("hunyuan_v1_dense", spread=2.0, seed=2),
    Architecture("seed_oss", spread=1.5),
    Architecture("arcee", spread=1.5, seed=1),
    Architecture("helium", spread=1.5),
    Architecture(
        "dots1",
        {
            **_MOE,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        spread=1.5,
        seed=3,
    ),
    Architecture("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture("persimmon", spread=3.0, embedding=0.1),
    Architecture("gpt_bigcode", _GPT2_LIKE, common=False, spread=3.0),
    Architecture(
        "phi3",
        {
            "sliding_window": None,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
                "long_factor": [2.0, 2.0, 2.0, 2.0, 2.0, 2.0],
            },
            "original_max_position_embeddings": 128,
        },
        name="phi3_longrope",
        spread=1.5,
    ),
]
"""Families whose sessions share forwards."""

ONE_BY_ONE = [
    Architecture(
        "llama4_text",
        {**_MOE, "num_local_experts": 4, "intermediate_size_mlp": 64},
        spread=1.5,
        seed=1,
    ),
    Architecture(
        "gpt_neo",
        {
            "num_layers": BLOCKS,
            "attention_types": [[["global", "local"], 2]],
            "num_heads": 4,
            "window_size": 16,
        },
        spread=1.5,
        seed=2,
    ),
    Architecture("minimax", {"num_local_experts": 4, "num_experts_per_tok": 2}, seed=1),
    Architecture(
        "bloom",
        {
            "n_layer": BLOCKS,
            "n_head": 4,
            "hidden_size": 48,
            "vocab_size": VOCAB,
            "eos_token_id": None,
            "tie_word_embeddings": False,
        },
        common=False,
        seed=6,
    ),
    Architecture(
        "falcon",
        {
            "num_hidden_layers": BLOCKS,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "vocab_size": VOCAB,
            "eos_token_id": None,
        },
        common=False,
        spread=2.0,
    ),
    Architecture("gptj", {**_GPT2_LIKE, "rotary_dim": 8}, common=False, spread=3.0, seed=1),
    Architecture("codegen", {**_GPT2_LIKE, "rotary_dim": 8}, common=False, spread=2.0, seed=1),
    Architecture(
        "mpt",
        {
            "n_layers": BLOCKS,
            "n_heads": 4,
            "d_model": 48,
            "vocab_size": VOCAB,
            "max_seq_len": 256,
            "tie_word_embeddings": False,
        },
        common=False,
        spread=2.0,
        seed=2,
    ),
    Architecture(
        "qwen3_next",
        {
            **_MOE,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 32,
            "layer_types": [
                "linear_attention",
                "full_attention",
                "linear_attention",
                "full_attention",
            ],
        },
        spread=0.6,
    ),
    Architecture("lfm2", {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
    Architecture("mamba", {"state_size": 8}, seed=1),
    Architecture("mamba2", {"state_size": 8, "num_heads": 4, "head_dim": 24, "n_groups": 2}),
    Architecture(
        "falcon_h1",
        {
            "mamba_d_ssm": 48,
            "mamba_n_heads": 4,
            "mamba_d_head": 12,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
        },
    ),
    Architecture(
        "recurrent_gemma",
        {"lru_width": 48, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
        spread=3.0,
        seed=3,
    ),
    Architecture(
        "jamba",
        {
            "num_experts": 4,
            "mamba_d_state": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
]
"""Families that run one session per forward: attention of their own, recurrent blocks, masks or
positions that depend on the whole row."""

ARCHITECTURES = RAGGED + ONE_BY_ONE
