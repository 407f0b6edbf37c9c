"""What a model is, as data: its dims and the few numbers in which its maths differ.

Legend of the dim letters that end array names everywhere:
B batch, T query, S cache slots, D embed, N heads, K kv heads, G = N / K heads a kv head serves,
H head dim, F mlp, V vocab, L layers.
Usage: `spec = spec_from_hf(json.loads(config_json))`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from invcoder_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A Llama-family decoder: RMSNorm, rotary positions, grouped attention, SwiGLU, no biases."""

    vocab: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool
    rope_linear_factor: float = 1.0  # positions are divided by it (DeepSeek-Coder: 4)

    def __post_init__(self) -> None:
        for name in ("vocab", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp", "context"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; a model needs a whole number of 1 or more")
        if self.heads % self.kv_heads:
            raise UserError(
                f"heads {self.heads} do not divide into kv_heads {self.kv_heads}; "
                f"use a model whose heads are a multiple of its kv heads"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim}; rotary positions need an even one")


def spec_from_hf(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Hugging Face config.json; UserError names the field that is not understood."""
    _expect(config, "model_type", "llama", missing=None)
    _expect(config, "hidden_act", "silu")
    _expect(config, "pretraining_tp", 1)
    for name in ("attention_bias", "mlp_bias", "rope_interleaved"):
        _expect(config, name, False)
    for name in ("sliding_window", "quantization_config"):
        _expect(config, name, None)
    heads = _whole(config, "num_attention_heads")
    embed = _whole(config, "hidden_size")
    theta, factor = _rope_from_hf(config)
    return ModelSpec(
        vocab=_field(config, "vocab_size"),
        embed=embed,
        layers=_field(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or embed // heads,
        mlp=_field(config, "intermediate_size"),
        context=config.get("max_position_embeddings", 2048),
        rope_theta=theta,
        norm_eps=_real(config, "rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
        rope_linear_factor=factor,
    )


def _rope_from_hf(config: Mapping[str, Any]) -> tuple[float, float]:
    """Theta and linear factor; transformers 5 writes rope_parameters, older ones rope_scaling."""
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(where) or {}
    _expect(config, "partial_rotary_factor", 1.0)
    _expect(rope, "partial_rotary_factor", 1.0)
    theta = _real(rope, "rope_theta", _real(config, "rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, 1.0
    if kind == "linear":
        return theta, _real(rope, "factor")
    raise UserError(
        f"{where} type is {kind!r}, only 'default' and 'linear' are supported; use another model"
    )


def spec_from_gguf(metadata: Mapping[str, Any], *, tied: bool) -> ModelSpec:
    """The spec of a GGUF's fields; `tied`: the file has no head of its own (output.weight)."""
    _expect(metadata, "general.architecture", "llama", missing=None)
    _expect(metadata, "llama.expert_count", 0)
    heads = _whole(metadata, "llama.attention.head_count")
    embed = _whole(metadata, "llama.embedding_length")
    head_dim = metadata.get("llama.attention.key_length", embed // heads)
    for name in ("llama.rope.dimension_count", "llama.attention.value_length"):
        _expect(metadata, name, head_dim)
    factor = 1.0
    if _expect(metadata, "llama.rope.scaling.type", "none", "linear") == "linear":
        factor = _real(metadata, "llama.rope.scaling.factor")
    return ModelSpec(
        vocab=metadata.get("llama.vocab_size") or len(_field(metadata, "tokenizer.ggml.tokens")),
        embed=embed,
        layers=_field(metadata, "llama.block_count"),
        heads=heads,
        kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp=_field(metadata, "llama.feed_forward_length"),
        context=_field(metadata, "llama.context_length"),
        rope_theta=_real(metadata, "llama.rope.freq_base", 10000.0),
        norm_eps=_real(metadata, "llama.attention.layer_norm_rms_epsilon"),
        tied=tied,
        rope_linear_factor=factor,
    )


_ABSENT = object()


def _field(data: Mapping[str, Any], name: str) -> Any:
    if data.get(name) is None:
        raise UserError(f"the model's config has no field {name!r}; convert or download it again")
    return data[name]


def _whole(data: Mapping[str, Any], name: str) -> int:
    value = _field(data, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}; a model needs one whole number of 1 or more")
    return value


def _real(data: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = _field(data, name) if default is None else data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise UserError(f"{name} is {value!r}; a model needs a number above 0")
    return float(value)


def _expect(data: Mapping[str, Any], name: str, *allowed: Any, missing: Any = _ABSENT) -> Any:
    """The field's value, which must be allowed; a missing field counts as `missing` or allowed."""
    value = data.get(name, allowed[0] if missing is _ABSENT else missing)
    if value in allowed:
        return value
    choices = " or ".join(repr(choice) for choice in allowed)
    raise UserError(f"{name} is {value!r}, only {choices} is supported; use another model")
