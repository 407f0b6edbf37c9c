"""Generation on a small random model, judged by full forwards and by noise drawn anew."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invcoder_jax.errors import UserError
from invcoder_jax.generation import engine
from invcoder_jax.generation.batching import fits, generate
from invcoder_jax.generation.engine import Completion, Request
from invcoder_jax.generation.sampling import identity
from invcoder_jax.mesh import make_mesh, serve_layout
from invcoder_jax.model.decoder import from_params, param_shapes
from invcoder_jax.model.sources import TINY, LoadedModel
from invcoder_jax.settings import GenerationSettings, SamplingSettings
from invcoder_jax.tokenization import byte_tokenizer

TIE = 1e-3
GREEDY = SamplingSettings(max_new_tokens=12)
SAMPLED = SamplingSettings(
    temperature=0.7, top_p=0.9, repetition_penalty=1.2, max_new_tokens=12, seed=5
)
SETTINGS = GenerationSettings(rows=4, prompt_buckets=(8, 24), sync_steps=5, part_rows=4)


@functools.cache
def load(mesh: tuple[int, int, int] = (1, 1, 1)) -> LoadedModel:
    """An untied model with weights large enough that its text depends on all that it saw."""
    spec = dataclasses.replace(TINY, tied=False)
    layout = serve_layout(make_mesh(mesh), spec)
    random = np.random.default_rng(0)

    def fill(p):
        value = np.ones(p.shape) if p.init_std is None else random.normal(size=p.shape) * 0.25
        return layout.put(value.astype(np.float32), *p.names)

    params = jax.tree.map(fill, param_shapes(spec))
    return LoadedModel(from_params(spec, layout, params, jnp.float32), byte_tokenizer(), spec, "")


def make_requests(samples: int = 2, forced: tuple[str, ...] = ("",)) -> list[Request]:
    """Five prompts of 2 to 23 tokens, so both buckets, with samples of each."""
    tokenizer = byte_tokenizer()
    texts = ["ab", "def f(x):", "hello", "a longer prompt of words", "zz top 7"]
    return [
        Request(
            f"prompt {number}",
            tuple(tokenizer.encode(text))[:23],
            sample,
            tuple(tokenizer.encode(forced[sample % len(forced)])),
        )
        for number, text in enumerate(texts)
        for sample in range(samples)
    ]


def nucleus(scores_V: np.ndarray, top_p: float) -> np.ndarray:
    """Top-p by sorting, one row."""
    order = np.argsort(-scores_V, kind="stable")
    probability = np.exp(scores_V - scores_V.max())
    probability /= probability.sum()
    before = np.cumsum(probability[order]) - probability[order]
    return np.where(np.isin(np.arange(scores_V.size), order[before < top_p]), scores_V, -np.inf)


@jax.jit
def full_logits(model, tokens_BxT):
    return model.logits(model(tokens_BxT))


def assert_explained(
    loaded: LoadedModel,
    requests: list[Request],
    completions: list[Completion],
    sampling: SamplingSettings,
) -> None:
    """Every sampled token has the best perturbed score of a full forward, or one within TIE."""
    assert [(c.id, c.sample) for c in completions] == [(r.id, r.sample) for r in requests]
    texts = [(*r.prompt, *c.token_ids) for r, c in zip(requests, completions, strict=True)]
    tokens_BxT = np.zeros((16, 48), np.int32)
    for row, text in enumerate(texts):
        tokens_BxT[row, : len(text)] = text
    with loaded.model.layout.active():
        logits = jax.device_get(full_logits(loaded.model, loaded.model.layout.put(tokens_BxT)))
    for row, (request, text) in enumerate(zip(requests, texts, strict=True)):
        key = jax.random.key(sampling.seed)
        for word in identity(request.id, request.sample):
            key = jax.random.fold_in(key, word)
        first = len(request.prompt) + len(request.forced)
        assert text[:first] == request.prompt + request.forced
        assert len(text) > first
        for at in range(first, len(text)):
            scores = logits[row, at - 1].astype(np.float64)
            if sampling.repetition_penalty != 1:
                seen, penalty = list(set(text[:at])), sampling.repetition_penalty
                scores[seen] = np.where(
                    scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty
                )
            if sampling.temperature:
                scores = nucleus(scores / sampling.temperature, sampling.top_p)
                step_key = jax.random.fold_in(key, at - len(request.prompt))
                scores = scores + np.asarray(jax.random.gumbel(step_key, scores.shape))
            assert scores[text[at]] >= scores.max() - TIE, (request.id, at)


def test_greedy_is_the_argmax_of_full_forwards():
    requests = make_requests()
    assert_explained(load(), requests, generate(load(), requests, GREEDY, SETTINGS), GREEDY)


def test_sampled_text_is_the_best_of_perturbed_scores():
    requests = make_requests(samples=3)
    completions = generate(load(), requests, SAMPLED, SETTINGS)
    assert_explained(load(), requests, completions, SAMPLED)
    texts = [c.token_ids for c in completions]
    assert len(set(texts)) == len(texts)


def test_forced_tokens_come_first_and_count_as_seen():
    requests = make_requests(forced=("Write a", "Create a"))
    completions = generate(load(), requests, SAMPLED, SETTINGS)
    assert_explained(load(), requests, completions, SAMPLED)
    assert all(c.text.startswith(("Write a", "Create a")) for c in completions)
    pairs = zip(completions, requests, strict=True)
    assert {len(c.token_ids) - len(r.forced) for c, r in pairs} == {12}


def test_forced_tokens_that_all_samples_share_are_prefilled_with_the_same_result():
    """One sample a prompt shares all of its forced tokens; in two samples they differ."""
    both = make_requests(forced=("Write a", "Create a"))
    completions = generate(load(), both, SAMPLED, SETTINGS)
    alone = generate(load(), both[::2], SAMPLED, SETTINGS)
    assert alone == completions[::2]


def test_text_depends_on_neither_rows_nor_sync_nor_buckets_nor_order():
    requests = make_requests(forced=("Write a", ""))
    expected = generate(load(), requests, SAMPLED, SETTINGS)
    other = GenerationSettings(rows=16, prompt_buckets=(32,), sync_steps=16, part_rows=4)
    assert generate(load(), requests, SAMPLED, other) == expected
    assert generate(load(), requests[::-1], SAMPLED, SETTINGS) == expected[::-1]
    assert generate(load(), requests[3:4], SAMPLED, SETTINGS) == expected[3:4]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_mesh_of_eight_devices_writes_the_same_text(sampling):
    requests = make_requests(forced=("", "Write a"))
    completions = generate(load((2, 2, 2)), requests, sampling, SETTINGS)
    assert_explained(load(), requests, completions, sampling)
    assert completions == generate(load(), requests, sampling, SETTINGS)


def test_another_seed_writes_another_text():
    requests = make_requests()
    other = dataclasses.replace(SAMPLED, seed=6)
    first, second = (generate(load(), requests, s, SETTINGS) for s in (SAMPLED, other))
    assert not set(c.token_ids for c in first) & set(c.token_ids for c in second)


def test_samples_of_a_prompt_share_its_prefill(monkeypatch):
    calls = []
    real = engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda m, t: calls.append(t.shape) or real(m, t))
    generate(load(), make_requests(samples=3), SAMPLED, SETTINGS)
    assert calls == [(4, 8), (4, 24)]  # three prompts of up to 8 tokens, then two of up to 24


def test_other_requests_and_numbers_compile_nothing_new():
    generate(load(), make_requests(), SAMPLED, SETTINGS)
    programs = (engine.prefill, engine.insert, engine.decode_steps, engine.empty_cache)
    before = [program._cache_size() for program in programs]
    other = SamplingSettings(
        temperature=1.3, top_p=0.5, repetition_penalty=1.7, max_new_tokens=9, seed=77
    )
    generate(load(), make_requests(samples=3)[1:], other, SETTINGS)
    assert [program._cache_size() for program in programs] == before


def test_eos_ends_a_response_and_is_left_out():
    requests = make_requests(samples=1)
    plain = generate(load(), requests, GREEDY, SETTINGS)
    eos = plain[0].token_ids[6]
    tokenizer = dataclasses.replace(load().tokenizer, eos_ids=(eos, 257))
    ended = generate(dataclasses.replace(load(), tokenizer=tokenizer), requests, GREEDY, SETTINGS)
    for one, full in zip(ended, plain, strict=True):
        cut = full.token_ids.index(eos) if eos in full.token_ids else None
        assert one.token_ids == full.token_ids[:cut]
        assert one.finish_reason == ("length" if cut is None else "eos")
    assert ended[0].finish_reason == "eos"


def test_a_stop_string_cuts_text_and_tokens():
    requests = make_requests(samples=1)
    plain = generate(load(), requests, GREEDY, SETTINGS)
    stop = plain[1].text[3:6]
    stopped = generate(load(), requests, dataclasses.replace(GREEDY, stop=(stop,)), SETTINGS)
    cut = plain[1].text.index(stop)
    assert stopped[1].text == plain[1].text[:cut]
    assert stopped[1].finish_reason == "stop"
    assert plain[1].text.startswith(load().tokenizer.decode(stopped[1].token_ids))


def test_progress_counts_every_request_once():
    requests, counts = make_requests(samples=3), []
    generate(load(), requests, GREEDY, SETTINGS, counts.append)
    assert sum(counts) == len(requests)
    assert generate(load(), [], GREEDY, SETTINGS) == []


def test_no_transfer_is_implicit():
    with jax.transfer_guard("disallow"):
        generate(load(), make_requests(), SAMPLED, SETTINGS)


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "message"),
    [
        (0, 4, "no tokens"),
        (25, 4, r"prompt of 25 tokens .* \(8, 24\); append a bucket of 25"),
        (20, 4090, "prompt 20 .* 4090 tokens exceed the model's context of 4096"),
    ],
)
def test_a_request_that_does_not_fit_is_named(prompt, max_new_tokens, message):
    request = Request("the id", (1,) * prompt)
    sampling = SamplingSettings(max_new_tokens=max_new_tokens)
    assert not fits(request, load(), sampling, SETTINGS)
    with pytest.raises(UserError, match=f"'the id'.*{message}"):
        generate(load(), [request], sampling, SETTINGS)


def test_the_longest_request_that_fits_is_taken():
    request = Request("a", (65,) * 24, 0, (66,) * 3)
    assert fits(request, load(), GREEDY, SETTINGS)
    (found,) = generate(load(), [request], GREEDY, SETTINGS)
    assert_explained(load(), [request], [found], GREEDY)
