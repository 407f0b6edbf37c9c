"""Stage select: for each snippet the candidate with the highest P(Yes) (paper, section 4.3).

Rows are joined by id, never by position. Usage:
`rows, counts = select(candidates, scores, snippets, top=1)`.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from invcoder_jax.artifacts import StageFolder
from invcoder_jax.errors import UserError
from invcoder_jax.records import (
    MARK_EMPTY,
    Candidate,
    Score,
    SelectedPair,
    Snippet,
    content_id,
)
from invcoder_jax.settings import Settings
from invcoder_jax.stages.inputs import Counts, Inputs

Row = TypeVar("Row")
# Candidates that are unscored or empty are passed over; snippets without candidates, or with none
# that is eligible, are dropped.
COUNTS = (
    *("snippets", "no_candidates", "none_eligible"),
    *("candidates", "unscored", "empty", "selected"),
)


def run(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Write the SelectedPair rows as one part; returns counts."""
    candidates = list(inputs.folder("summarize").read_all(Candidate))
    scores = list(inputs.folder("self_evaluate").read_all(Score))
    snippets = list(inputs.folder("preprocess").read_all(Snippet))
    unscored = {row.id for row in candidates} - {row.candidate_id for row in scores}
    too_long = inputs.folder("self_evaluate").manifest()["counts"]["too_long"]
    if len(unscored) != too_long:
        raise UserError(
            f"{len(unscored)} candidates have no score and self_evaluate left out {too_long}; "
            "delete its folder and run again"
        )
    rows, counts = select(candidates, scores, snippets, settings.select.top, unscored)
    out.forget(path.name for path in out.part_files())
    out.write_part(0, 1, rows)
    return counts


def select(
    candidates: Sequence[Candidate],
    scores: Sequence[Score],
    snippets: Sequence[Snippet],
    top: int,
    unscored: Collection[str] = (),
) -> tuple[list[SelectedPair], dict[str, int]]:
    """The `top` best candidates of each snippet, best first, snippets in their order.

    Ties go to the lowest sample index. Candidates marked empty, and the ids in `unscored`, are
    never chosen; a snippet with no other is dropped and counted. UserError names a missing id.
    """
    if top < 1:
        raise UserError(f"select.top is {top}; set it to 1 or more")
    by_snippet: dict[str, list[Candidate]] = {
        name: [] for name in _by_id(snippets, "snippet", [row.id for row in snippets])
    }
    known = _by_id(candidates, "candidate", [row.id for row in candidates])
    score_of = _by_id(scores, "score of candidate", [row.candidate_id for row in scores])
    for name in sorted(score_of.keys() - known.keys()):
        raise UserError(f"score of candidate {name!r} has no candidate; run self_evaluate again")
    counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
    for row in candidates:
        if row.snippet_id not in by_snippet:
            raise UserError(
                f"candidate {row.id!r} belongs to snippet {row.snippet_id!r}, which is missing; "
                "run summarize again"
            )
        counts["candidates"] += 1
        if row.id in unscored:
            counts["unscored"] += 1
        elif MARK_EMPTY in row.marks:
            counts["empty"] += 1
        else:
            _check_score(row, score_of)
            by_snippet[row.snippet_id].append(row)
    with_candidates = {row.snippet_id for row in candidates}
    chosen: list[SelectedPair] = []
    for snippet in snippets:
        counts["snippets"] += 1
        eligible = by_snippet[snippet.id]
        if not eligible:
            missing = snippet.id not in with_candidates
            counts["no_candidates" if missing else "none_eligible"] += 1
        ranked = sorted(eligible, key=lambda c: (-score_of[c.id].yes_probability, c.sample))
        chosen += [_pair(snippet, row, score_of[row.id]) for row in ranked[:top]]
    counts["selected"] = len(chosen)
    return chosen, counts


def _by_id(rows: Iterable[Row], name: str, ids: Sequence[str]) -> dict[str, Row]:
    found = dict(zip(ids, rows, strict=True))
    if len(found) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{name} {twice!r} occurs twice; run its stage again")
    return found


def _check_score(row: Candidate, score_of: Mapping[str, Score]) -> None:
    score = score_of.get(row.id)
    if score is None:
        raise UserError(f"candidate {row.id!r} has no score; run self_evaluate again")
    if score.snippet_id != row.snippet_id:
        raise UserError(
            f"candidate {row.id!r} belongs to snippet {row.snippet_id!r}, its score to "
            f"{score.snippet_id!r}; run self_evaluate again"
        )
    if not math.isfinite(score.yes_probability):
        raise UserError(
            f"candidate {row.id!r} has yes_probability {score.yes_probability}; "
            "it must be a number from 0 to 1, so look for broken weights"
        )


def _pair(snippet: Snippet, candidate: Candidate, score: Score) -> SelectedPair:
    return SelectedPair(
        id=content_id("selected", snippet.id, candidate.id),
        snippet_id=snippet.id,
        candidate_id=candidate.id,
        instruction=candidate.instruction,
        response=snippet.block,
        yes_probability=score.yes_probability,
    )
