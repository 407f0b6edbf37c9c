"""Logits against transformers and torch in float32, from the same files."""

from pathlib import Path

import jax
import numpy as np
import pytest

from invcoder_jax.mesh import Layout, make_mesh, serve_layout
from invcoder_jax.model.sources import LoadedModel, load_model
from invcoder_jax.model.spec import ModelSpec
from invcoder_jax.tokenization import byte_tokenizer

torch = pytest.importorskip("torch", reason="torch is the oracle; install the [dev] extra")
transformers = pytest.importorskip("transformers")

TOKENS_BxT = np.random.default_rng(0).integers(0, 260, (2, 23), np.int32)


def load(ref: Path) -> LoadedModel:
    def one_device(spec: ModelSpec) -> Layout:
        return serve_layout(make_mesh((1, 1, 1), jax.devices()[:1]), spec)

    return load_model(str(ref), one_device, param_dtype="float32", compute_dtype="float32")


def our_logits(loaded: LoadedModel, tokens_BxT: np.ndarray) -> np.ndarray:
    with loaded.model.layout.active():
        return np.asarray(jax.jit(lambda m, t: m.logits(m(t)))(loaded.model, tokens_BxT))


def their_logits(model, tokens_BxT: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens_BxT, dtype=torch.long)).logits.float().numpy()


@pytest.mark.parametrize(
    ("kv_heads", "tied", "rope_factor"),
    [(2, True, None), (4, False, 4.0)],
    ids=["GQA tied", "MHA untied linear rope"],
)
def test_a_hugging_face_folder_gives_the_same_logits(tmp_path, kv_heads, tied, rope_factor):
    rope = {"rope_type": "default", "rope_theta": 500.0}
    if rope_factor:
        rope |= {"rope_type": "linear", "factor": rope_factor}
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=12,
        intermediate_size=56,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        rope_parameters=rope,
        initializer_range=0.3,  # so that softmax is far from uniform
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # norms of ones would hide a missing scale
        for name, weight in theirs.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    byte_tokenizer().save(tmp_path)
    wanted_BxTxV = their_logits(theirs, TOKENS_BxT)
    assert wanted_BxTxV.std() > 0.5
    np.testing.assert_allclose(our_logits(load(tmp_path), TOKENS_BxT), wanted_BxTxV, atol=1e-4)


def transformers_gguf_model(path: Path):
    """transformers' own GGUF reader; from_pretrained(gguf_file=...) would need accelerate too."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.LlamaConfig(**load_gguf_checkpoint(path)["config"])
    model = transformers.LlamaForCausalLM(config).eval()
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing, extra = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not extra
    model.tie_weights()
    return model


@pytest.mark.slow
def test_smollm2_from_gguf_gives_the_logits_of_transformers(smollm2_gguf):
    loaded = load(smollm2_gguf)
    theirs = transformers_gguf_model(smollm2_gguf)
    for text in (
        "def fibonacci(n):\n    if n < 2:\n        return n\n",
        "<|im_start|>user\nWhat is 12 * 345?<|im_end|>\n<|im_start|>assistant\n",
        "Üben 🚀\t\tx=1;y = 22",
    ):
        tokens_1xT = np.array([loaded.tokenizer.encode(text)], np.int32)
        wanted_1xTxV = their_logits(theirs, tokens_1xT)
        np.testing.assert_allclose(our_logits(loaded, tokens_1xT), wanted_1xTxV, atol=1e-3)
