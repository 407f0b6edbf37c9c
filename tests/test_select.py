"""Select: argmax by id, ties to the lowest sample, missing rows named, every loss counted."""

import random

import pytest

from invcoder_jax.errors import UserError
from invcoder_jax.records import MARK_EMPTY, Candidate, Score, Snippet, content_id
from invcoder_jax.stages.select import select

Marks = dict[tuple[int, int], tuple[str, ...]]


def rows(
    scores: list[list[float]], marks: Marks | None = None
) -> tuple[list[Candidate], list[Score], list[Snippet]]:
    """Snippet n has a candidate for each of scores[n]."""
    snippets = [
        Snippet.make(f"pair{n}", "python", f"```python\n{n}\n```") for n in range(len(scores))
    ]
    candidates, made = [], []
    for n, (snippet, row) in enumerate(zip(snippets, scores, strict=True)):
        for k, value in enumerate(row):
            name = content_id("candidate", snippet.id, str(k))
            marked = (marks or {}).get((n, k), ())
            candidates.append(Candidate(name, snippet.id, k, "Write a", f"{n}/{k}", "stop", marked))
            made.append(Score(name, snippet.id, k, 0.0, 0.0, value))
    return candidates, made, snippets


def test_the_highest_score_wins_and_brings_its_snippet():
    candidates, scores, snippets = rows([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]])
    chosen, counts = select(candidates, scores, snippets, 1)
    assert [row.instruction for row in chosen] == ["0/1", "1/0"]
    assert [row.response for row in chosen] == [s.block for s in snippets]
    assert [row.yes_probability for row in chosen] == [0.9, 0.5]
    assert (counts["snippets"], counts["candidates"], counts["selected"]) == (2, 6, 2)


def test_order_of_candidates_and_scores_does_not_matter_and_ties_go_to_the_first_sample():
    random.seed(2)
    values = [[random.choice([0.25, 0.5, 0.75]) for _ in range(10)] for _ in range(50)]
    candidates, scores, snippets = rows(values)
    want = [f"{n}/{row.index(max(row))}" for n, row in enumerate(values)]
    for _ in range(3):
        random.shuffle(candidates)
        random.shuffle(scores)
        chosen, _ = select(candidates, scores, snippets, 1)
        assert [row.instruction for row in chosen] == want
    assert len({row.id for row in chosen}) == 50


def test_more_than_one_are_taken_best_first():
    candidates, scores, snippets = rows([[0.1, 0.9, 0.3, 0.9]])
    chosen, counts = select(candidates, scores, snippets, 3)
    assert [row.instruction for row in chosen] == ["0/1", "0/3", "0/2"]
    assert counts["selected"] == 3


def test_an_empty_candidate_is_chosen_for_no_snippet():
    empty = (MARK_EMPTY,)
    marks: Marks = {(0, 1): empty, (1, 0): empty, (1, 1): empty}
    candidates, scores, snippets = rows([[0.1, 0.9], [0.9, 0.8], []], marks)
    chosen, counts = select(candidates, scores, snippets, 1)
    assert [row.instruction for row in chosen] == ["0/0"]
    assert (counts["empty"], counts["none_eligible"], counts["no_candidates"]) == (3, 1, 1)


def test_no_snippet_is_dropped_without_being_counted():
    random.seed(4)
    for _ in range(50):
        values = [[random.random() for _ in range(random.randint(0, 3))] for _ in range(9)]
        marks: Marks = {
            (n, k): (MARK_EMPTY,) for n in range(9) for k in range(3) if random.random() < 0.4
        }
        candidates, scores, snippets = rows(values, marks)
        chosen, counts = select(candidates, scores, snippets, 1)
        lost = counts["no_candidates"] + counts["none_eligible"]
        assert len(chosen) + lost == counts["snippets"] == 9


def test_a_missing_score_is_named_unless_it_was_left_out_on_purpose():
    candidates, scores, snippets = rows([[0.1, 0.9]])
    with pytest.raises(UserError, match=candidates[1].id):
        select(candidates, scores[:1], snippets, 1)
    chosen, counts = select(candidates, scores[:1], snippets, 1, {candidates[1].id})
    assert [row.instruction for row in chosen] == ["0/0"]
    assert counts["unscored"] == 1


def test_a_missing_snippet_or_candidate_is_named():
    candidates, scores, snippets = rows([[0.1], [0.9]])
    with pytest.raises(UserError, match=snippets[1].id):
        select(candidates, scores, snippets[:1], 1)
    with pytest.raises(UserError, match=candidates[1].id):
        select(candidates[:1], scores, snippets, 1)


def test_rows_that_occur_twice_are_refused():
    candidates, scores, snippets = rows([[0.1], [0.9]])
    for twice in (
        (candidates + candidates[:1], scores, snippets),
        (candidates, scores + scores[:1], snippets),
        (candidates, scores, snippets + snippets[:1]),
    ):
        with pytest.raises(UserError, match="occurs twice"):
            select(*twice, 1)


def test_a_score_that_is_no_number_is_refused():
    candidates, scores, snippets = rows([[0.1, float("nan")]])
    with pytest.raises(UserError, match=candidates[1].id):
        select(candidates, scores, snippets, 1)


def test_a_score_of_another_snippet_is_refused():
    candidates, scores, snippets = rows([[0.1], [0.9]])
    scores[0] = Score(candidates[0].id, snippets[1].id, 0, 0.0, 0.0, 0.1)
    with pytest.raises(UserError, match=candidates[0].id):
        select(candidates, scores, snippets, 1)


def test_a_top_below_one_is_refused():
    with pytest.raises(UserError, match="select.top is 0"):
        select([], [], [], 0)
