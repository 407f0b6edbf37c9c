"""Sampling against Hugging Face's logits processors and the distribution it should have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from invcoder_jax.generation import sampling
from invcoder_jax.mesh import make_mesh
from invcoder_jax.settings import SamplingSettings

ROWS, VOCAB = 8, 300
YES = np.bool_(True)


@pytest.fixture(scope="module")
def mesh():
    with jax.set_mesh(make_mesh((1, 1, 1))):
        yield


def random_logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, VOCAB)).astype(np.float32) * scale


def seen_of(tokens: np.ndarray) -> np.ndarray:
    seen = np.zeros((ROWS, VOCAB), bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    return seen


def keys_of(seed: int, count: int = ROWS) -> jax.Array:
    identities = np.stack([sampling.identity(f"row {i}", 0) for i in range(count)])
    return sampling.row_keys(jnp.uint32(seed), jnp.asarray(identities))


def test_repetition_penalty_equals_hugging_face(mesh):
    logits, tokens = random_logits(0), np.random.default_rng(1).integers(0, VOCAB, (ROWS, 40))
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(tokens), torch.tensor(logits))
    found = sampling.penalize(jnp.asarray(logits), jnp.asarray(seen_of(tokens)), jnp.float32(1.3))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.5, 0.95, 0.999])
def test_nucleus_equals_hugging_face(mesh, top_p):
    logits = random_logits(2)
    expected = TopPLogitsWarper(top_p)(None, torch.tensor(logits)).numpy()
    found = jax.jit(sampling.keep_nucleus)(jnp.asarray(logits), jnp.float32(top_p))
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).sum(axis=1).min() >= 1


def test_nucleus_keeps_equal_logits_together(mesh):
    logits = np.full((1, VOCAB), -20, np.float32)
    logits[0, [3, 50, 70]] = 5.0
    found = jax.jit(sampling.keep_nucleus)(jnp.asarray(logits), jnp.float32(0.1))
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == [3, 50, 70]


def test_scores_before_the_noise_equal_hugging_faces_chain(mesh):
    """With the noise taken out, what is chosen is the best of HF's processed scores."""
    settings = SamplingSettings(temperature=0.7, top_p=0.9, repetition_penalty=1.4)
    logits, tokens = random_logits(3), np.random.default_rng(4).integers(0, VOCAB, (ROWS, 90))
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.4),
            TemperatureLogitsWarper(0.7),
            TopPLogitsWarper(0.9),
        ]
    )
    processed = chain(torch.tensor(tokens), torch.tensor(logits)).numpy()
    keys = keys_of(7)
    noise = np.stack([jax.random.gumbel(key, (VOCAB,)) for key in keys])
    found = sampling.choose(
        jnp.asarray(logits),
        jnp.asarray(seen_of(tokens)),
        keys,
        YES,
        sampling.rule_of(settings),
        jax.device_put(sampling.knobs_of(settings)),
    )
    np.testing.assert_array_equal(found, np.argmax(processed + noise, axis=1))


def test_greedy_takes_the_lowest_id_of_equals(mesh):
    logits = np.zeros((ROWS, VOCAB), np.float32)
    logits[:, [200, 17, 90]] = 2.5
    settings = SamplingSettings()
    found = sampling.choose(
        jnp.asarray(logits),
        None,
        keys_of(0),
        YES,
        sampling.rule_of(settings),
        jax.device_put(sampling.knobs_of(settings)),
    )
    assert found.tolist() == [17] * ROWS


def test_samples_have_the_distribution_of_the_softmax(mesh):
    settings, draws = SamplingSettings(temperature=2.0), 20_000
    logits = np.array([1.0, 3.0, -2.0, 0.5, 4.0], np.float32)
    found = jax.jit(sampling.choose, static_argnames="rule")(
        jnp.broadcast_to(logits, (draws, 5)),
        None,
        keys_of(1, draws),
        YES,
        sampling.rule_of(settings),
        jax.device_put(sampling.knobs_of(settings)),
    )
    expected = np.exp(logits / 2) / np.exp(logits / 2).sum()
    frequency = np.bincount(found, minlength=5) / draws
    deviation = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(frequency - expected) < 4 * deviation)


def test_key_depends_on_seed_id_and_sample(mesh):
    words = [("a", 0), ("a", 1), ("b", 0)]
    identities = jnp.asarray(np.stack([sampling.identity(*one) for one in words]))
    data = [
        tuple(row)
        for seed in (0, 1)
        for row in jax.random.key_data(sampling.row_keys(jnp.uint32(seed), identities)).tolist()
    ]
    assert len(set(data)) == 6


def test_key_is_the_documented_chain_of_folds(mesh):
    words = sampling.identity("some id", 3)
    key = jax.random.key(11)
    for word in words:
        key = jax.random.fold_in(key, word)
    (found,) = sampling.row_keys(jnp.uint32(11), jnp.asarray(words)[None])
    assert words[2] == 3
    assert jax.random.key_data(found).tolist() == jax.random.key_data(key).tolist()


def test_sharded_vocab_chooses_the_same(mesh):
    settings = SamplingSettings(temperature=1.0, top_p=0.9)
    logits = random_logits(5)
    choose = jax.jit(sampling.choose, static_argnames="rule")
    rule, knobs = sampling.rule_of(settings), sampling.knobs_of(settings)
    alone = choose(jnp.asarray(logits), None, keys_of(2), YES, rule, knobs)
    with jax.set_mesh(make_mesh((2, 2, 2))):
        rows = ("replica", "fsdp")
        spread = jax.device_put(logits, jax.P(rows, "model"))
        keys = jax.reshard(keys_of(2), jax.P(rows))
        found = choose(spread, None, keys, YES, rule, knobs)
        np.testing.assert_array_equal(jax.device_get(found), jax.device_get(alone))
