"""Reading model configs: known ones exactly, anything else refused by name."""

import dataclasses
import json

import pytest

from invcoder_jax.errors import UserError
from invcoder_jax.model.spec import ModelSpec, spec_from_gguf, spec_from_hf

DEEPSEEK_1B = {
    "model_type": "llama",
    "vocab_size": 32256,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 5504,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100000,
    "rope_scaling": {"type": "linear", "factor": 4.0},
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
}
SMOLLM2_GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 100000.0,
    "llama.rope.dimension_count": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 49152,
}


def test_linear_rope_scaling_is_data():
    spec = spec_from_hf(DEEPSEEK_1B)
    assert spec == ModelSpec(
        vocab=32256,
        embed=2048,
        layers=24,
        heads=16,
        kv_heads=16,
        head_dim=128,
        mlp=5504,
        context=16384,
        rope_theta=100000.0,
        norm_eps=1e-6,
        tied=False,
        rope_linear_factor=4.0,
    )


def test_rope_parameters_of_transformers_5_mean_the_same():
    config = {k: v for k, v in DEEPSEEK_1B.items() if k not in ("rope_theta", "rope_scaling")}
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}
    assert spec_from_hf(config) == spec_from_hf(DEEPSEEK_1B)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "qwen2"),
        ("model_type", "starcoder2"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("pretraining_tp", 2),
        ("sliding_window", 4096),
        ("quantization_config", {"bits": 4}),
        ("partial_rotary_factor", 0.5),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"type": "linear"}),
        ("hidden_size", None),
        ("num_attention_heads", [16, 8]),
        ("rms_norm_eps", "small"),
        ("num_key_value_heads", 5),
        ("vocab_size", "many"),
        ("head_dim", 63),
    ],
)
def test_what_would_change_the_maths_is_refused_by_name(field, value):
    name = {"num_key_value_heads": "kv_heads", "vocab_size": "vocab"}.get(field, field)
    with pytest.raises(UserError, match="factor" if value == {"type": "linear"} else name):
        spec_from_hf({**DEEPSEEK_1B, field: value})


def test_a_config_without_model_type_is_refused():
    with pytest.raises(UserError, match="model_type is None"):
        spec_from_hf({k: v for k, v in DEEPSEEK_1B.items() if k != "model_type"})


def test_gguf_fields_give_the_spec():
    spec = spec_from_gguf(SMOLLM2_GGUF, tied=True)
    assert (spec.vocab, spec.embed, spec.layers, spec.mlp) == (49152, 576, 30, 1536)
    assert (spec.heads, spec.kv_heads, spec.head_dim) == (9, 3, 64)
    assert (spec.context, spec.rope_theta, spec.norm_eps, spec.tied) == (8192, 1e5, 1e-5, True)
    scaled = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert spec_from_gguf(SMOLLM2_GGUF | scaled, tied=True).rope_linear_factor == 4.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("general.architecture", "qwen2"),
        ("llama.expert_count", 8),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.dimension_count", 32),
        ("llama.attention.value_length", 32),
        ("llama.block_count", None),
    ],
)
def test_unknown_gguf_fields_are_refused_by_name(field, value):
    with pytest.raises(UserError, match=field):
        spec_from_gguf(SMOLLM2_GGUF | {field: value}, tied=True)


def test_a_spec_survives_json():
    spec = spec_from_hf(DEEPSEEK_1B)
    assert ModelSpec(**json.loads(json.dumps(dataclasses.asdict(spec)))) == spec
