"""SmolLM2-135M: our texts, logits and P(Yes) against transformers and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invcoder_jax.generation.batching import generate
from invcoder_jax.generation.engine import Request
from invcoder_jax.mesh import make_mesh, serve_layout
from invcoder_jax.model.sources import load_model
from invcoder_jax.scoring import mean_log_probs, yes_probabilities
from invcoder_jax.settings import GenerationSettings, SamplingSettings, ScoringSettings
from invcoder_jax.tokenization import Example

pytestmark = pytest.mark.slow

TIE = 1e-3
NEW_TOKENS = 64
TEXTS = (
    "def fibonacci(n):\n",
    "The capital of France is",
    "import os\nimport sys\n\n\ndef main(arguments):\n    ",
    "Write a Python function that returns the median of a list of numbers.\n\n```python\n",
    "1, 2, 3, 4,",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n",
    "Q: Is the answer correct? Your reply should begin with Yes or No.\nA:",
    "for i in range(10):\n    print(i",
)


@pytest.fixture(scope="module")
def ours(smollm2_gguf):
    return load_model(
        str(smollm2_gguf),
        lambda spec: serve_layout(make_mesh((1, 1, 1)), spec),
        param_dtype=jnp.float32,
        compute_dtype=jnp.float32,
    )


@pytest.fixture(scope="module")
def reference(smollm2_gguf):
    """Logits [T, V] of a token sequence, by torch in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # from_pretrained(gguf_file=...) would need accelerate, and does no more than this.
    config = AutoConfig.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    loaded = load_gguf_checkpoint(str(smollm2_gguf), return_tensors=True, model_to_load=empty)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(loaded["tensors"], strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embedding
    model.tie_weights()

    def logits(tokens) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([list(tokens)])).logits[0].numpy()

    return logits


@pytest.fixture(scope="module")
def prompts(ours) -> list[tuple[int, ...]]:
    """24 prompts of 4 to about 120 tokens."""
    texts = [text * repeats for repeats in (1, 2, 4) for text in TEXTS]
    return [tuple(ours.tokenizer.encode(text)) for text in texts]


def test_greedy_continuations_in_one_batch_equal_the_references(ours, reference, prompts):
    """Judged by one torch forward a text: each token must be torch's argmax, or its tie."""
    requests = [Request(str(index), prompt) for index, prompt in enumerate(prompts)]
    settings = GenerationSettings(rows=24, prompt_buckets=(64, 128), sync_steps=16, part_rows=24)
    completions = generate(ours, requests, SamplingSettings(max_new_tokens=NEW_TOKENS), settings)
    ties = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = list(completion.token_ids)
        if completion.finish_reason == "eos":
            ids.append(ours.tokenizer.eos_ids[0])
        else:
            assert len(ids) == NEW_TOKENS
        logits = reference([*prompt, *ids])[len(prompt) - 1 : -1]
        best = logits.argmax(axis=1)
        for at in np.flatnonzero(best != ids):
            second, first = np.sort(logits[at])[-2:]
            assert first - second < TIE
            assert logits[at, ids[at]] >= second
            ties += 1
    assert ties <= 2


def test_logits_equal_the_references(ours, reference, prompts):
    forward = jax.jit(lambda model, tokens_BxT: model.logits(model(tokens_BxT)))
    layout = ours.model.layout
    with layout.active():
        for prompt in prompts[::5]:
            padded = np.zeros((1, 128), np.int32)
            padded[0, : len(prompt)] = prompt
            found = jax.device_get(forward(ours.model, layout.put(padded, "batch")))
            np.testing.assert_allclose(
                found[0, : len(prompt)], reference(prompt), atol=1e-3, rtol=0
            )


def test_yes_probabilities_equal_the_references(ours, reference, prompts):
    words = ours.tokenizer.yes_no()
    named = [(str(index), prompt) for index, prompt in enumerate(prompts)]
    found = yes_probabilities(ours, named, ScoringSettings(rows=8))
    for one, prompt in zip(found, prompts, strict=True):
        yes, no = reference(prompt)[-1][[words.yes_id, words.no_id]].astype(np.float64)
        assert abs(one.yes_probability - np.exp(yes) / (np.exp(yes) + np.exp(no))) < 1e-4


def test_response_log_probs_equal_the_references(ours, reference, prompts):
    examples = [Example(prompt, len(prompt) // 2, False) for prompt in prompts[::3]]
    found = mean_log_probs(ours, examples, ScoringSettings(rows=8))
    for one, example in zip(found, examples, strict=True):
        logits = reference(example.tokens).astype(np.float64)
        log_prob = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        start = example.prompt_length
        response = range(start, len(example.tokens))
        expected = sum(log_prob[at - 1, example.tokens[at]] for at in response)
        assert one.tokens == len(response)
        assert abs(one.total - expected) < 1e-3 * one.tokens
