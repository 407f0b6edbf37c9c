"""Scores on a small random model against full logits in numpy."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invcoder_jax import scoring
from invcoder_jax.errors import UserError
from invcoder_jax.mesh import make_mesh, serve_layout
from invcoder_jax.model.decoder import from_params, param_shapes
from invcoder_jax.model.sources import TINY, LoadedModel
from invcoder_jax.scoring import YesNoLogits, mean_log_probs, prompt_fits, yes_probabilities
from invcoder_jax.settings import ScoringSettings
from invcoder_jax.tokenization import Example, byte_tokenizer

SETTINGS = ScoringSettings(rows=4)
MESHES = [(1, 1, 1), (2, 2, 2)]


@functools.cache
def load(mesh: tuple[int, int, int] = (1, 1, 1)) -> LoadedModel:
    """A model with weights large enough that its logits depend on all that it saw."""
    layout = serve_layout(make_mesh(mesh), TINY)
    random = np.random.default_rng(0)

    def fill(p):
        value = np.ones(p.shape) if p.init_std is None else random.normal(size=p.shape) * 0.3
        return layout.put(value.astype(np.float32), *p.names)

    params = jax.tree.map(fill, param_shapes(TINY))
    return LoadedModel(from_params(TINY, layout, params, jnp.float32), byte_tokenizer(), TINY, "")


def make_texts(*lengths: int) -> list[tuple[int, ...]]:
    random = np.random.default_rng(1)
    return [tuple(random.integers(0, 256, length).tolist()) for length in lengths]


@functools.cache
def full_log_probs(tokens: tuple[int, ...]) -> np.ndarray:
    """Logits [T, V] of one text by a full forward, in float64."""
    model, padded = load().model, np.zeros((1, 96), np.int32)
    padded[0, : len(tokens)] = tokens
    with model.layout.active():
        logits = jax.jit(lambda m, t: m.logits(m(t)))(model, model.layout.put(padded, "batch"))
    return np.asarray(jax.device_get(logits), np.float64)[0, : len(tokens)]


@pytest.mark.parametrize("mesh", MESHES)
def test_yes_and_no_logits_are_those_behind_the_last_token(mesh):
    texts = make_texts(3, 70, 1, 64, 20, 65, 90)
    found = yes_probabilities(load(mesh), [(f"p{len(t)}", t) for t in texts], SETTINGS)
    for one, text in zip(found, texts, strict=True):
        yes, no = full_log_probs(text)[-1][[ord("Y"), ord("N")]]
        assert one.id == f"p{len(text)}"
        assert abs(one.yes_logit - yes) < 1e-5
        assert abs(one.no_logit - no) < 1e-5
        assert abs(one.yes_probability - np.exp(yes) / (np.exp(yes) + np.exp(no))) < 1e-6


@pytest.mark.parametrize("mesh", MESHES)
def test_response_log_probs_sum_over_the_response(mesh):
    lengths, prompts = (3, 70, 64, 40, 90), (1, 0, 33, 40, 89)
    texts = make_texts(*lengths)
    examples = [Example(t, n, False) for t, n in zip(texts, prompts, strict=True)]
    found = mean_log_probs(load(mesh), examples, SETTINGS)
    for one, text, start in zip(found, texts, prompts, strict=True):
        logits = full_log_probs(text)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        response = range(max(start, 1), len(text))
        assert one.tokens == len(response)
        assert abs(one.total - sum(log_probs[at - 1, text[at]] for at in response)) < 2e-4
    assert found[0].mean == found[0].total / 2
    assert math.isnan(found[3].mean)


def test_scores_depend_on_neither_rows_nor_order():
    prompts = [(str(len(t)), t) for t in make_texts(3, 70, 1, 64, 20, 65, 90)]
    expected = yes_probabilities(load(), prompts, SETTINGS)
    other = yes_probabilities(load(), prompts[::-1], ScoringSettings(rows=3))[::-1]
    for one, same in zip(expected, other, strict=True):
        assert one.id == same.id
        assert abs(one.yes_probability - same.yes_probability) < 1e-5


def test_probability_of_extreme_logits_is_exact():
    assert YesNoLogits("", 800.0, -800.0).yes_probability == 1.0
    assert YesNoLogits("", -800.0, 800.0).yes_probability == 0.0
    assert YesNoLogits("", 7.0, 7.0).yes_probability == 0.5
    assert YesNoLogits("", 0.0, 3.0).yes_probability == pytest.approx(1 / (1 + math.e**3))


def test_lengths_are_padded_to_few_values():
    lengths = {scoring._padded_length(n) for n in range(1, 4097)}
    assert all(scoring._padded_length(n) >= n for n in range(1, 4097))
    assert all(length % scoring.CHUNK == 0 for length in lengths)
    assert len(lengths) == 20


def spans_positions_and_vocab(lowered: jax.stages.Lowered, positions: int) -> bool:
    """Whether a compiled program holds an array of positions x vocab elements."""
    shapes = re.findall(r"f32\[([\d,]+)\]", lowered.compile().as_text())
    dims = [[int(d) for d in shape.split(",")] for shape in set(shapes)]
    return any(TINY.vocab in d and math.prod(d) >= positions * TINY.vocab for d in dims)


def test_no_array_spans_positions_and_vocab():
    model, tokens = load().model, jax.ShapeDtypeStruct((4, 256), jnp.int32)
    bounds = jax.ShapeDtypeStruct((4,), jnp.int32, sharding=model.layout.sharding("batch"))
    with model.layout.active():
        ours = [
            scoring._response_log_probs.lower(model, tokens, bounds, bounds),
            scoring._logits_after.lower(model, tokens, bounds, token_ids=(1, 2)),
        ]
        everything = jax.jit(lambda m, t: m.logits(m(t))).lower(model, tokens)
    assert not any(spans_positions_and_vocab(lowered, 4 * 256) for lowered in ours)
    assert spans_positions_and_vocab(everything, 4 * 256)


def test_other_texts_compile_nothing_new():
    yes_probabilities(load(), [("a", text) for text in make_texts(5, 6, 7, 8)], SETTINGS)
    before = scoring._logits_after._cache_size()
    yes_probabilities(load(), [("b", text) for text in make_texts(60, 1, 9, 8)], SETTINGS)
    assert scoring._logits_after._cache_size() == before


def test_progress_counts_every_row_once():
    counts = []
    texts = make_texts(3, 4, 5, 6, 7, 8)
    with jax.transfer_guard("disallow"):
        yes_probabilities(load(), [("", text) for text in texts], SETTINGS, counts.append)
        mean_log_probs(load(), [Example(t, 1, False) for t in texts], SETTINGS, counts.append)
    assert counts == [4, 2, 4, 2]
    assert yes_probabilities(load(), [], SETTINGS) == []


def test_a_text_that_does_not_fit_is_named():
    small = dataclasses.replace(load(), spec=dataclasses.replace(TINY, context=10))
    assert prompt_fits(small, [1] * 10)
    assert not prompt_fits(small, [1] * 11)
    assert not prompt_fits(small, [])
    with pytest.raises(UserError, match="prompt 'the id' has 11 tokens; the model takes 1 to 10"):
        yes_probabilities(small, [("the id", (1,) * 11)], SETTINGS)
    with pytest.raises(UserError, match="example 1 has 11 tokens"):
        examples = [Example((1,) * n, 1, False) for n in (3, 11)]
        mean_log_probs(small, examples, SETTINGS)
