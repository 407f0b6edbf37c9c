"""The decoder's passes against each other, on one device and on a 2x2x2 mesh."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from invcoder_jax.mesh import Layout, make_mesh, serve_layout, train_layout
from invcoder_jax.model.cache import KVCache, Prefilled, empty_cache, insert
from invcoder_jax.model.decoder import (
    Decoder,
    Params,
    abstract_params,
    from_params,
    param_shapes,
    params_of,
)
from invcoder_jax.model.sources import TINY
from invcoder_jax.model.spec import ModelSpec

UNTIED = dataclasses.replace(TINY, tied=False, rope_linear_factor=4.0)
ROWS, LENGTH, PROMPT, SLOTS = 8, 11, 5, 16
TOKENS_BxT = np.random.default_rng(0).integers(0, TINY.vocab, (ROWS, LENGTH), np.int32)


@jax.jit
def full_logits(model: Decoder, tokens_BxT: jax.Array) -> jax.Array:
    return model.logits(model(tokens_BxT))


@jax.jit
def prefilled_cache(
    model: Decoder, tokens_BxT: jax.Array, rows_R: jax.Array
) -> tuple[jax.Array, KVCache]:
    hidden_BxTxD, prefilled = model.prefill(tokens_BxT)
    cache = empty_cache(model.spec, model.layout, ROWS, SLOTS, jnp.float32)
    return model.logits(hidden_BxTxD), insert(cache, prefilled, rows_R)


@jax.jit
def decode_logits(
    model: Decoder, tokens_B: jax.Array, positions_B: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    hidden_BxD, cache = model.decode(tokens_B, positions_B, cache)
    return model.logits(hidden_BxD), cache


def one_device(spec: ModelSpec) -> Layout:
    return serve_layout(make_mesh((1, 1, 1), jax.devices()[:1]), spec)


def cached_logits(model: Decoder) -> np.ndarray:
    """Logits [B, T, V]: a prefill of PROMPT tokens, then one decode step a token."""
    put = model.layout.put
    with model.layout.active():
        prompt_BxT = put(TOKENS_BxT[:, :PROMPT], "batch")
        first, cache = prefilled_cache(model, prompt_BxT, np.arange(ROWS))
        logits = [np.asarray(first)]
        for at in range(PROMPT, LENGTH):
            positions_B = put(np.full(ROWS, at, np.int32), "batch")
            step, cache = decode_logits(model, put(TOKENS_BxT[:, at], "batch"), positions_B, cache)
            logits.append(np.asarray(step)[:, None])
    return np.concatenate(logits, axis=1)


def uncached_logits(model: Decoder, tokens_BxT: np.ndarray = TOKENS_BxT) -> np.ndarray:
    with model.layout.active():
        return np.asarray(full_logits(model, model.layout.put(tokens_BxT, "batch")))


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(UNTIED, one_device(UNTIED), rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def logits_BxTxV(model: Decoder) -> np.ndarray:
    return uncached_logits(model)


def test_cached_decode_equals_full_forward(model, logits_BxTxV):
    np.testing.assert_allclose(cached_logits(model), logits_BxTxV, atol=1e-5)
    assert logits_BxTxV.std() > 0.05  # else any logits would be close


@pytest.mark.parametrize("layout_of", [train_layout, serve_layout])
def test_logits_on_2x2x2_devices_equal_one_device(layout_of, logits_BxTxV):
    sharded = Decoder(UNTIED, layout_of(make_mesh((2, 2, 2)), UNTIED), rngs=nnx.Rngs(1))
    np.testing.assert_allclose(uncached_logits(sharded), logits_BxTxV, atol=1e-5)
    np.testing.assert_allclose(cached_logits(sharded), logits_BxTxV, atol=1e-5)


def test_dims_that_the_mesh_does_not_divide_give_the_same_logits(logits_BxTxV):
    layout = train_layout(make_mesh((1, 2, 4)), UNTIED)
    sharded = Decoder(UNTIED, layout, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(uncached_logits(sharded), logits_BxTxV, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(model, logits_BxTxV):
    alone = uncached_logits(model, TOKENS_BxT[2:4])
    np.testing.assert_allclose(alone, logits_BxTxV[2:4], atol=1e-5)


def test_padding_on_the_right_does_not_matter(model, logits_BxTxV):
    padded = TOKENS_BxT.copy()
    padded[:, PROMPT:] = 7
    logits = uncached_logits(model, padded)
    np.testing.assert_allclose(logits[:, :PROMPT], logits_BxTxV[:, :PROMPT], atol=1e-5)
    assert np.abs(logits[:, PROMPT:] - logits_BxTxV[:, PROMPT:]).max() > 0.01


def test_packed_texts_do_not_see_each_other(model, logits_BxTxV):
    """Row 0's first tokens and row 1's first tokens in one row, then padding."""
    packed = np.concatenate([TOKENS_BxT[:1, :4], TOKENS_BxT[1:2, :5], [[0, 0]]], axis=1)
    segments = np.array([[1] * 4 + [2] * 5 + [0] * 2])
    positions = np.array([[*range(4), *range(5), 0, 0]])
    with model.layout.active():
        hidden = jax.jit(Decoder.__call__)(model, packed, positions, segments)
        logits = np.asarray(model.logits(hidden))
    np.testing.assert_allclose(logits[0, :4], logits_BxTxV[0, :4], atol=1e-5)
    np.testing.assert_allclose(logits[0, 4:9], logits_BxTxV[1, :5], atol=1e-5)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("spec", [TINY, UNTIED], ids=["tied", "untied"])
def test_logits_at_are_columns_of_all_logits(spec):
    model = Decoder(spec, train_layout(make_mesh((2, 2, 2)), spec))
    with model.layout.active():
        hidden_BxD = np.random.default_rng(2).normal(size=(ROWS, spec.embed)).astype(np.float32)
        hidden_BxD = model.layout.put(hidden_BxD, "batch")
        both = jax.jit(lambda m, hidden: (m.logits(hidden), m.logits_at(hidden, (200, 3))))
        every, some = both(model, hidden_BxD)
    np.testing.assert_allclose(some, np.asarray(every)[:, [200, 3]], atol=1e-6)


def test_insert_replaces_named_rows_and_drops_rows_out_of_range():
    layout = one_device(TINY)
    dims = (TINY.layers, 3, 4, TINY.kv_heads, TINY.head_dim)
    new_k, new_v = np.random.default_rng(1).normal(size=(2, *dims)).astype(np.float32)
    with layout.active():
        cache = empty_cache(TINY, layout, ROWS, SLOTS, jnp.float32)
        cache = jax.tree.map(lambda x: x + 1, cache)
        cache = jax.jit(insert)(cache, Prefilled(new_k, new_v), np.array([6, ROWS, -1]))
    for layer in range(TINY.layers):
        k_BxSxKxH = np.asarray(cache.k_LxBxKxHxS[layer]).transpose(0, 3, 1, 2)
        v_BxSxKxH = np.asarray(cache.v_LxBxKxSxH[layer]).transpose(0, 2, 1, 3)
        for got, new in ((k_BxSxKxH, new_k[layer]), (v_BxSxKxH, new_v[layer])):
            wanted = np.ones_like(got)
            wanted[6, :4] = new[0]
            np.testing.assert_array_equal(got, wanted)


def test_loop_layers_give_the_same_step(model):
    put = model.layout.put
    with model.layout.active():
        _, cache = prefilled_cache(model, put(TOKENS_BxT[:, :PROMPT], "batch"), np.arange(ROWS))
        tokens_B, positions_B = TOKENS_BxT[:, PROMPT], np.full(ROWS, PROMPT, np.int32)
        logits, _ = decode_logits(model, tokens_B, positions_B, cache)
        with_layers = jax.jit(lambda m, *step: m.decode(*step, layers=m.loop_layers())[0])
        hidden_BxD = with_layers(model, tokens_B, positions_B, cache)
        np.testing.assert_allclose(model.logits(hidden_BxD), logits, atol=1e-6)


def test_compute_dtype_rules_hidden_states_and_logits_stay_float32():
    spec = TINY
    model = Decoder(spec, one_device(spec), compute_dtype=jnp.bfloat16)
    with model.layout.active():
        hidden = jax.jit(Decoder.__call__)(model, TOKENS_BxT)
        assert hidden.dtype == jnp.bfloat16 and model.embed.dtype == jnp.float32
        assert model.logits(hidden).dtype == jnp.float32


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def gradients(params: Params, layout: Layout, remat: bool) -> Params:
    tokens_BxT = layout.put(TOKENS_BxT, "batch")

    def loss(params: Params) -> jax.Array:
        model = from_params(UNTIED, layout, params, jnp.float32)
        return jnp.mean(model.logits(model(tokens_BxT, remat=remat)) ** 2)

    with layout.active():
        return jax.jit(jax.grad(loss))(params)


def test_sharded_gradients_equal_one_devices_without_rematerialization_warnings(model, capfd):
    layout = train_layout(make_mesh((2, 2, 2)), UNTIED)
    params = params_of(Decoder(UNTIED, layout, rngs=nnx.Rngs(1)))
    with no_compilation_cache():  # a cached program warns no more
        sharded = gradients(params, layout, remat=True)
    assert "rematerialization" not in capfd.readouterr().err
    plain = gradients(params_of(model), model.layout, remat=False)
    for got, wanted, weight in zip(*map(jax.tree.leaves, (sharded, plain, params)), strict=True):
        assert got.sharding.is_equivalent_to(weight.sharding, got.ndim)
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_params_go_out_and_in_and_match_their_abstract_form(model, logits_BxTxV):
    params = params_of(model)
    for array, struct in zip(
        *map(jax.tree.leaves, (params, abstract_params(UNTIED, model.layout, jnp.float32))),
        strict=True,
    ):
        assert (array.shape, array.dtype) == (struct.shape, struct.dtype)
        assert array.sharding.is_equivalent_to(struct.sharding, array.ndim)
    again = from_params(UNTIED, model.layout, params, jnp.float32)
    np.testing.assert_array_equal(uncached_logits(again), logits_BxTxV)


@pytest.mark.parametrize(
    ("dims", "total"),  # parameter counts computed from the published dims
    [
        ((32000, 4096, 32, 32, 32, 128, 11008, False), 6_738_415_616),
        ((32256, 7168, 62, 56, 8, 128, 19200, False), 33_342_991_360),
        ((49152, 576, 30, 9, 3, 64, 1536, True), 134_515_008),
    ],
    ids=["CodeLlama-7b", "deepseek-33b", "SmolLM2-135M"],
)
def test_parameters_add_up_to_the_published_counts(dims, total):
    vocab, embed, layers, heads, kv_heads, head_dim, mlp, tied = dims
    sizes = dict(vocab=vocab, embed=embed, layers=layers, heads=heads, kv_heads=kv_heads)
    spec = dataclasses.replace(TINY, **sizes, head_dim=head_dim, mlp=mlp, tied=tied)
    assert sum(np.prod(p.shape) for p in jax.tree.leaves(param_shapes(spec))) == total
