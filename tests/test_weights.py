"""Weights from safetensors and GGUF files: the right numbers, or one clear sentence."""

import dataclasses
import json
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from invcoder_jax.errors import UserError
from invcoder_jax.mesh import make_mesh, train_layout
from invcoder_jax.model.decoder import Params, abstract_params
from invcoder_jax.model.sources import TINY
from invcoder_jax.model.spec import spec_from_gguf
from invcoder_jax.model.weights import GgufFile, SafetensorsFolder, load_into

SPEC = dataclasses.replace(TINY, tied=False)
Q_OUT, KV_OUT = SPEC.heads * SPEC.head_dim, SPEC.kv_heads * SPEC.head_dim
LAYER_SHAPES = {  # Hugging Face: [out, in]
    "input_layernorm": (SPEC.embed,),
    "self_attn.q_proj": (Q_OUT, SPEC.embed),
    "self_attn.k_proj": (KV_OUT, SPEC.embed),
    "self_attn.v_proj": (KV_OUT, SPEC.embed),
    "self_attn.o_proj": (SPEC.embed, Q_OUT),
    "post_attention_layernorm": (SPEC.embed,),
    "mlp.gate_proj": (SPEC.mlp, SPEC.embed),
    "mlp.up_proj": (SPEC.mlp, SPEC.embed),
    "mlp.down_proj": (SPEC.embed, SPEC.mlp),
}
GGUF_LAYER_NAMES = dict(
    zip(
        LAYER_SHAPES,
        "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down".split(),
        strict=True,
    )
)


def hf_tensors() -> dict[str, np.ndarray]:
    shapes = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(SPEC.layers)
        for name, shape in LAYER_SHAPES.items()
    }
    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = (SPEC.vocab, SPEC.embed)
    shapes["model.norm.weight"] = (SPEC.embed,)
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=s).astype(np.float32) for name, s in shapes.items()}


TENSORS = hf_tensors()


def load(file: SafetensorsFolder | GgufFile, dtype: str = "float32", spec=SPEC) -> Params:
    layout = train_layout(make_mesh((2, 2, 2)), spec)
    return load_into(abstract_params(spec, layout, jnp.dtype(dtype)), file, spec)


def assert_holds_the_tensors(params: Params, rtol: float = 0) -> None:
    for layer in range(SPEC.layers):
        for ours, theirs in (
            ("wq", "self_attn.q_proj"),
            ("wk", "self_attn.k_proj"),
            ("down", "mlp.down_proj"),
            ("mlp_norm", "post_attention_layernorm"),
        ):
            wanted = TENSORS[f"model.layers.{layer}.{theirs}.weight"].T
            np.testing.assert_allclose(params["blocks"][ours][layer], wanted, rtol=rtol)
    np.testing.assert_allclose(params["embed"], TENSORS["model.embed_tokens.weight"], rtol=rtol)
    np.testing.assert_allclose(params["head"], TENSORS["lm_head.weight"].T, rtol=rtol)


def save_sharded(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    names = sorted(tensors)
    shard_of = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(shard_of.values()):
        save_file({n: tensors[n] for n in names if shard_of[n] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": shard_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_are_transposed_stacked_and_placed(tmp_path, sharded):
    if sharded:
        save_sharded(tmp_path, TENSORS)
    else:
        save_file(TENSORS, tmp_path / "model.safetensors")
    params = load(SafetensorsFolder(tmp_path))
    assert_holds_the_tensors(params)
    layout = train_layout(make_mesh((2, 2, 2)), SPEC)
    like = abstract_params(SPEC, layout, jnp.float32)
    assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(lambda x: x.sharding, like)


def test_weights_are_kept_in_the_dtype_asked_for(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    params = load(SafetensorsFolder(tmp_path), "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert_holds_the_tensors(jax.tree.map(lambda x: x.astype(jnp.float32), params), rtol=0.004)


def test_a_tied_model_passes_over_a_repeated_head_and_old_buffers(tmp_path):
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)}
    save_file(TENSORS | buffers, tmp_path / "model.safetensors")
    assert "head" not in load(SafetensorsFolder(tmp_path), spec=TINY)


def test_a_missing_tensor_is_named(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = {k: v for k, v in TENSORS.items() if k != name}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks 1 tensors, first '{name}'"):
        load(SafetensorsFolder(tmp_path))


def test_an_extra_tensor_is_named(tmp_path):
    name = "model.layers.0.self_attn.q_proj.bias"
    save_file(TENSORS | {name: np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"no parameter takes, first '{name}'"):
        load(SafetensorsFolder(tmp_path))


def test_a_wrong_shape_is_named(tmp_path):
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file(TENSORS | {name: np.ones((KV_OUT, 3), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"'{name}' .* shape \(3, {KV_OUT}\)"):
        load(SafetensorsFolder(tmp_path))


@pytest.mark.parametrize("kept", [4, 300, -10])
def test_a_cut_shard_is_named(tmp_path, kept):
    save_sharded(tmp_path, TENSORS)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{shard.name} is damaged or cut"):
        load(SafetensorsFolder(tmp_path))


def test_a_missing_shard_is_named(tmp_path):
    save_sharded(tmp_path, TENSORS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is missing"):
        load(SafetensorsFolder(tmp_path))


def test_an_index_must_not_point_out_of_its_folder(tmp_path):
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside of its folder"):
        SafetensorsFolder(tmp_path)


def test_pickle_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UserError, match=r"pickle \(pytorch_model.bin\)"):
        SafetensorsFolder(tmp_path)


def interleave(array: np.ndarray, heads: int) -> np.ndarray:
    """Row i + h of a head's halves to row 2i + h, one row at a time."""
    size = array.shape[0] // heads
    out = np.empty_like(array)
    for head in range(heads):
        for i in range(size // 2):
            for half in (0, 1):
                out[head * size + 2 * i + half] = array[head * size + half * size // 2 + i]
    return out


def write_gguf(path: Path, skip: str = "", architecture: str = "llama") -> None:
    """TENSORS as GGUF: norms and q/k in float32, the rest in Q8_0 where its block of 32 fits."""
    names = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
    names["model.norm.weight"] = "output_norm.weight"
    for layer in range(SPEC.layers):
        for hf, short in GGUF_LAYER_NAMES.items():
            names[f"model.layers.{layer}.{hf}.weight"] = f"blk.{layer}.{short}.weight"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(SPEC.layers)
    writer.add_context_length(SPEC.context)
    writer.add_embedding_length(SPEC.embed)
    writer.add_feed_forward_length(SPEC.mlp)
    writer.add_head_count(SPEC.heads)
    writer.add_head_count_kv(SPEC.kv_heads)
    writer.add_key_length(SPEC.head_dim)
    writer.add_layer_norm_rms_eps(SPEC.norm_eps)
    writer.add_vocab_size(SPEC.vocab)
    for hf, name in names.items():
        if name == skip:
            continue
        array = TENSORS[hf]
        if "attn_q" in name or "attn_k." in name:
            array = interleave(array, SPEC.heads if "attn_q" in name else SPEC.kv_heads)
        if array.ndim == 2 and array.shape[1] % 32 == 0 and "attn" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_is_dequantised_and_its_rotation_order_undone(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    file = GgufFile(tmp_path / "tiny.gguf")
    spec = spec_from_gguf(file.metadata, tied=False)
    assert dataclasses.replace(spec, norm_eps=SPEC.norm_eps) == SPEC
    params = load(file)
    for ours, theirs in (("wq", "self_attn.q_proj"), ("wk", "self_attn.k_proj")):
        wanted = np.stack([TENSORS[f"model.layers.{i}.{theirs}.weight"].T for i in range(2)])
        np.testing.assert_array_equal(params["blocks"][ours], wanted)
    error = np.abs(np.asarray(params["embed"]) - TENSORS["model.embed_tokens.weight"])
    assert 0 < error.max() < 0.02  # Q8_0: half of 1/127 of a block's largest


def test_a_gguf_without_a_layers_tensor_is_refused(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", skip="blk.1.ffn_up.weight")
    with pytest.raises(UserError, match=r"lacks 1 tensors, first 'blk\.1\.ffn_up\.weight'"):
        load(GgufFile(tmp_path / "tiny.gguf"))


def test_a_gguf_of_another_architecture_is_refused(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", architecture="starcoder2")
    with pytest.raises(UserError, match="general.architecture is 'starcoder2'"):
        spec_from_gguf(GgufFile(tmp_path / "tiny.gguf").metadata, tied=False)


@pytest.mark.parametrize("damage", ["cut header", "cut tensors", "version", "magic", "empty"])
def test_a_damaged_gguf_is_a_user_error(tmp_path, damage):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    data = bytearray(path.read_bytes())
    if damage == "version":
        data[4:8] = (99).to_bytes(4, "little")
    if damage == "magic":
        data[:4] = b"GGML"
    kept = {"cut header": 100, "cut tensors": len(data) - 200, "empty": 0}.get(damage, len(data))
    path.write_bytes(data[:kept])
    with pytest.raises(UserError, match="tiny.gguf is no whole GGUF file"):
        GgufFile(path)
