"""The rows that flow between stages, their content ids, and JSON in and out.

Owns no files and no folders (artifacts.py does).
Usage: `to_json(Pair.make("Add.", "def f(): ..."))`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from invcoder_jax.errors import UserError

ID_LENGTH = 16  # hex digits: 64 bits, a collision among 10 million rows has odds of 3e-6


def content_id(*parts: str) -> str:
    """Hex id of an ordered list of texts; no two different lists share their encoding."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:ID_LENGTH]


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """One row of an instruction corpus (D)."""

    id: str
    instruction: str
    response: str
    source: str = ""

    @classmethod
    def make(cls, instruction: str, response: str, source: str = "", occurrence: int = 0) -> "Pair":
        """A pair with its content id; `occurrence` counts earlier rows with the same content."""
        repeat = [str(occurrence)] if occurrence else []
        return cls(
            content_id("pair", instruction, response, *repeat), instruction, response, source
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Snippet:
    """Code taken from a pair's response: `block` is fenced, the way that prompts show it."""

    id: str
    pair_id: str
    language: str
    block: str

    @classmethod
    def make(cls, pair_id: str, language: str, block: str) -> "Snippet":
        """A snippet with an id from its pair's id and its content."""
        return cls(content_id("snippet", pair_id, block), pair_id, language, block)


# Why a candidate is weak; it is kept and marked, never dropped.
MARK_EMPTY, MARK_PREFIX_ONLY, MARK_LENGTH = "empty", "prefix_only", "length_limit"


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """One of the K instructions that the model wrote for a snippet."""

    id: str
    snippet_id: str
    sample: int
    prefix: str
    instruction: str
    finish_reason: str
    marks: tuple[str, ...] = ()
    prompt_name: str = "summarize"
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """The model's own verdict on a candidate: P(Yes) is the paper's LM-score, in [0, 1]."""

    candidate_id: str
    snippet_id: str
    sample: int
    yes_logit: float
    no_logit: float
    yes_probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class SelectedPair:
    """A row of D*: the chosen instruction beside its snippet."""

    id: str
    snippet_id: str
    candidate_id: str
    instruction: str
    response: str
    yes_probability: float


Row = TypeVar("Row")


def to_json(row: Any) -> dict[str, Any]:
    """A dataclass row as a JSON object with its fields in order of declaration."""
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


def from_json(kind: type[Row], data: Mapping[str, Any], where: str = "") -> Row:
    """A row of `kind` from a JSON object; UserError names a missing or unknown column."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    unknown = sorted(set(data) - set(fields))
    missing = [n for n, f in fields.items() if n not in data and f.default is dataclasses.MISSING]
    if unknown or missing:
        raise UserError(
            f"{where or kind.__name__}: missing columns {missing}, unknown columns {unknown}; "
            f"a {kind.__name__} row has the columns {sorted(fields)}"
        )
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in data.items()})


def dump_line(data: Mapping[str, Any]) -> str:
    """One JSON line, the same bytes for the same data."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"


def parse_lines(lines: Iterable[bytes], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for each non-blank JSON line; UserError names file and line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where} line {number}: byte {error.start} is not valid UTF-8; "
                "save the file as UTF-8"
            ) from error
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where} line {number}: not JSON ({error.msg} at column {error.colno}); "
                "each line must hold one JSON object"
            ) from error
        if not isinstance(data, dict):
            raise UserError(
                f"{where} line {number}: found a {type(data).__name__}; "
                "each line must hold one JSON object"
            )
        yield number, data
