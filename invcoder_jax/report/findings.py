"""What the rows of a round say: text lengths, LM-scores, and the snippets to browse.

Each part is read once and only the snippets that will be shown are kept whole, so a run of any size
fits in memory. Usage: `found = gather(run, run.rounds[-1], most_shown=500)`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from invcoder_jax.progress import track
from invcoder_jax.records import Candidate, Pair, Score, SelectedPair, Snippet
from invcoder_jax.report.reading import (
    DECONTAMINATE,
    ORIGINAL,
    PREPROCESS,
    SELECT,
    SELF_EVALUATE,
    SUMMARIZE,
    TEACHER,
    Round,
    Run,
    Stage,
    read_objects,
)
from invcoder_jax.tokenization import Tokenizer, load_tokenizer

# Series of text lengths.
INSTRUCTIONS, CANDIDATES, CHOSEN = "instructions of D", "candidates", "chosen instructions"
RESPONSES, CHOSEN_RESPONSES = "responses of D", "chosen snippets"
LENGTH_ROWS = 20_000  # texts measured a series; a histogram needs no more


@dataclasses.dataclass
class Findings:
    """What a round's rows say: lengths in `unit`, LM-scores, and the snippets to browse.

    `every` is the stride of the length sample of each series; `shown` holds plain JSON data.
    """

    unit: str
    lengths: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    every: dict[str, int] = dataclasses.field(default_factory=dict)
    all_scores: list[float] = dataclasses.field(default_factory=list)
    chosen_scores: list[float] = dataclasses.field(default_factory=list)
    snippets: int = 0
    shown: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def gather(run: Run, turn: Round, most_shown: int) -> Findings:
    """Read a round's rows once each, part by part; at most `most_shown` snippets are kept whole."""
    unit, measure = _measure_of(run)
    found = Findings(unit)
    with track(5, f"read {turn.name}", "stages") as advance:
        _gather_snippets(found, turn, most_shown)
        advance(1)
        _gather_corpus(found, run.corpus, measure)
        advance(1)
        _gather_candidates(found, turn, measure)
        advance(1)
        _gather_scores(found, turn)
        advance(1)
        _gather_chosen(found, turn, measure)
        advance(1)
    return found


def _measure_of(run: Run) -> tuple[str, Callable[[str], int]]:
    """Tokens of the base model where a checkpoint of the run has its tokenizer, else characters."""
    stages = [turn.stage(name) for turn in run.rounds for name in (TEACHER, ORIGINAL)]
    folders = [stage.folder.path / "checkpoint" for stage in stages if stage.done]
    for folder in folders:
        if (folder / "tokenizer.json").exists():
            tokenizer = load_tokenizer(folder)
            return "tokens", functools.partial(_tokens, tokenizer)
    return "characters", len


def _tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text))


def _sample(found: Findings, name: str, stage: Stage) -> int:
    """Start a length series; its stride keeps about LENGTH_ROWS rows."""
    found.lengths[name] = []
    found.every[name] = max(1, stage.row_count() // LENGTH_ROWS)
    return found.every[name]


def _gather_snippets(found: Findings, turn: Round, most_shown: int) -> None:
    stage = turn.stage(PREPROCESS)
    found.snippets = stage.row_count()
    every = max(1, -(-found.snippets // most_shown))
    for index, snippet in enumerate(stage.folder.read_all(Snippet)):
        if index % every == 0:
            found.shown[snippet.id] = {
                "id": snippet.id,
                "pair": snippet.pair_id,
                "language": snippet.language,
                "block": snippet.block,
                "original": "",
                "removed": "",
                "candidates": [],
            }


def _gather_corpus(found: Findings, stage: Stage, measure: Callable[[str], int]) -> None:
    of_pair = {row["pair"]: row for row in found.shown.values()}
    every = _sample(found, INSTRUCTIONS, stage)
    _sample(found, RESPONSES, stage)
    for index, pair in enumerate(stage.folder.read_all(Pair)):
        if pair.id in of_pair:
            of_pair[pair.id]["original"] = pair.instruction
        if index % every == 0:
            found.lengths[INSTRUCTIONS].append(measure(pair.instruction))
            found.lengths[RESPONSES].append(measure(pair.response))


def _gather_candidates(found: Findings, turn: Round, measure: Callable[[str], int]) -> None:
    stage = turn.stage(SUMMARIZE)
    every = _sample(found, CANDIDATES, stage)
    for index, row in enumerate(stage.folder.read_all(Candidate)):
        if index % every == 0:
            found.lengths[CANDIDATES].append(measure(row.instruction))
        if row.snippet_id in found.shown:
            found.shown[row.snippet_id]["candidates"].append(
                {
                    "id": row.id,
                    "sample": row.sample,
                    "text": row.instruction,
                    "finish": row.finish_reason,
                    "marks": list(row.marks),
                    "score": None,
                    "chosen": False,
                }
            )


def _removals(stage: Stage) -> dict[str, str]:
    """Id of each row that decontamination dropped -> what it held."""
    rows = read_objects(stage.folder.path / "removed.jsonl")
    return {row["id"]: f"holds the {row['kind']} of {row['task_id']}" for row in rows}


def _gather_scores(found: Findings, turn: Round) -> None:
    for row in turn.stage(SELF_EVALUATE).folder.read_all(Score):
        found.all_scores.append(row.yes_probability)
        for candidate in found.shown.get(row.snippet_id, {}).get("candidates", ()):
            if candidate["id"] == row.candidate_id:
                finite = math.isfinite(row.yes_probability)
                candidate["score"] = row.yes_probability if finite else None  # JSON has no NaN


def _gather_chosen(found: Findings, turn: Round, measure: Callable[[str], int]) -> None:
    stage, cleaned = turn.stage(SELECT), turn.stage(DECONTAMINATE)
    every = _sample(found, CHOSEN, stage)
    _sample(found, CHOSEN_RESPONSES, stage)
    removed = _removals(cleaned)
    for index, row in enumerate(stage.folder.read_all(SelectedPair)):
        found.chosen_scores.append(row.yes_probability)
        if index % every == 0:
            found.lengths[CHOSEN].append(measure(row.instruction))
            found.lengths[CHOSEN_RESPONSES].append(measure(row.response))
        shown = found.shown.get(row.snippet_id)
        if shown is not None:
            shown["removed"] = removed.get(row.id, shown["removed"])
            for candidate in shown["candidates"]:
                candidate["chosen"] = candidate["chosen"] or candidate["id"] == row.candidate_id
