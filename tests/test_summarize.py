"""Candidates: prefixes drawn by identity, texts stripped, weak ones marked and never dropped."""

from collections import Counter

import pytest

from invcoder_jax.generation.engine import Completion
from invcoder_jax.prompts import load_prompts
from invcoder_jax.records import Snippet
from invcoder_jax.stages.summarize import candidate_of, draw_prefix

PROMPTS = load_prompts()


def completion(text: str, reason: str = "eos") -> Completion:
    return Completion("snippet", 3, text, (1, 2), reason)


@pytest.mark.parametrize(
    ("text", "reason", "marks"),
    [
        ("Write a python function that adds.", "eos", ()),
        ("Write a python", "stop", ("prefix_only",)),
        (" Write a python \n", "eos", ("prefix_only",)),
        ("  \n", "eos", ("empty",)),
        ("Write a python function that", "length", ("length_limit",)),
        ("Write a python", "length", ("prefix_only", "length_limit")),
    ],
)
def test_a_weak_candidate_is_marked(text, reason, marks):
    row = candidate_of(completion(text, reason), "Write a python", 7)
    assert row.marks == marks
    assert row.instruction == text.strip()
    assert (row.snippet_id, row.sample, row.finish_reason, row.seed) == ("snippet", 3, reason, 7)


def test_prefixes_are_drawn_uniformly_and_by_identity_alone():
    snippets = [Snippet.make(f"pair {n}", "python", "```python\nx\n```") for n in range(700)]
    drawn = [draw_prefix(PROMPTS, row, sample, 42) for row in snippets for sample in range(10)]
    again = [draw_prefix(PROMPTS, row, sample, 42) for row in snippets for sample in range(10)]
    other = [draw_prefix(PROMPTS, row, sample, 43) for row in snippets for sample in range(10)]
    assert drawn == again != other
    counts = Counter(drawn)
    assert set(counts) == {f"{prefix} python" for prefix in PROMPTS.prefixes}
    # 7,000 draws from 7: each about 1,000, five standard deviations are 146.
    assert max(abs(count - 1000) for count in counts.values()) < 146


def test_a_snippet_without_a_language_gives_a_bare_prefix():
    bare = Snippet.make("pair", "", "```\nx\n```")
    assert draw_prefix(PROMPTS, bare, 0, 42) in PROMPTS.prefixes
