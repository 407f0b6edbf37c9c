"""Stage decontaminate: drop pairs that hold a benchmark's text or solution (section 5).

The rule is a case-insensitive exact substring, so paraphrases stay. Usage:
`kept, removed, counts = decontaminate(rows, benchmark_strings("humaneval"))`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from invcoder_jax.artifacts import StageFolder, write_rows
from invcoder_jax.errors import UserError
from invcoder_jax.evaluation import humaneval
from invcoder_jax.evaluation.base import Problem
from invcoder_jax.records import SelectedPair
from invcoder_jax.settings import Settings
from invcoder_jax.stages.inputs import Counts, Inputs

REMOVED = "removed.jsonl"
WORD = re.compile(r"\w+")
# Solutions of one line that any program may hold; as strings to look for they would remove rows
# that have nothing to do with the problem. The list is BigCode's, whose fourth entry is misquoted
# there and so never matches.
GENERIC_SOLUTIONS = {
    "return len(string)": "HumanEval/23: the length of a string",
    "return ''.join(strings)": "HumanEval/28: the usual way to concatenate",
    "return n**2": "HumanEval/41: a square",
    "return x + y": "HumanEval/53: a sum",
}


@dataclasses.dataclass(frozen=True)
class BenchmarkString:
    """A text that D* must not hold; `kind` is docstring or solution."""

    benchmark: str
    task_id: str
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Removed:
    """A dropped row, by its SelectedPair id, and the first string that it holds."""

    id: str
    benchmark: str
    task_id: str
    kind: str
    text: str


def run(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Write the clean rows as one part and the dropped ones to removed.jsonl; returns counts."""
    rows = list(inputs.folder("select").read_all(SelectedPair))
    strings = [s for name in benchmarks_to_remove(settings) for s in benchmark_strings(name)]
    kept, removed, counts = decontaminate(rows, strings)
    out.forget(path.name for path in out.part_files())
    write_rows(out.path / REMOVED, removed)
    out.write_part(0, 1, kept)
    return counts


def benchmarks_to_remove(settings: Settings) -> list[str]:
    """Every benchmark that D* must not overlap: those of the run and those named beside them."""
    return sorted({*settings.evaluation.benchmarks, *settings.decontaminate.benchmarks})


def benchmark_strings(
    name: str, problems: Sequence[Problem] | None = None
) -> list[BenchmarkString]:
    """Docstring and solution of each problem, generic solutions left out."""
    if name != "humaneval":
        raise UserError(f"benchmark {name!r} has no strings to remove; set it to 'humaneval'")
    found = []
    for problem in humaneval.load_problems() if problems is None else problems:
        docstring = _last_docstring(problem.prompt)
        solution = problem.canonical_solution.strip()
        if docstring:
            found.append(BenchmarkString(name, problem.task_id, "docstring", docstring))
        if solution and solution not in GENERIC_SOLUTIONS:
            found.append(BenchmarkString(name, problem.task_id, "solution", solution))
    return found


def _last_docstring(prompt: str) -> str:
    """The docstring of the function to write: helpers with theirs come before it."""
    quoted = re.findall(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', prompt, re.DOTALL)
    return "".join(quoted[-1]).strip() if quoted else ""


def decontaminate(
    rows: Sequence[SelectedPair], strings: Sequence[BenchmarkString]
) -> tuple[list[SelectedPair], list[Removed], dict[str, int]]:
    """(kept, removed, counts): a row goes if instruction, blank line, response hold a string."""
    index = SubstringIndex([string.text for string in strings])
    kept: list[SelectedPair] = []
    removed: list[Removed] = []
    for row in rows:
        match = index.first_in(f"{row.instruction}\n\n{row.response}")
        if match is None:
            kept.append(row)
        else:
            removed.append(Removed(row.id, **dataclasses.asdict(strings[match])))
    by_kind = Counter(f"removed_{one.benchmark}_{one.kind}" for one in removed)
    totals = {"rows": len(rows), "kept": len(kept), "removed": len(removed)}
    return kept, removed, {**totals, **dict(sorted(by_kind.items()))}


class SubstringIndex:
    """Which of many strings a text holds, ignoring case.

    A word that has other characters on both sides inside a string stands as a whole word in every
    text that holds the string. Each string is filed under such a word, the one that fewest
    strings share, and is looked for only where a text has that word. Strings without one are
    looked for everywhere.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = [string.lower() for string in strings]
        if not all(self.strings):
            raise ValueError("an empty string occurs in every text; leave it out")
        inner = [_inner_words(string) for string in self.strings]
        shared = Counter(word for words in inner for word in words)
        self.everywhere: list[int] = []
        self.of_word: dict[str, list[int]] = {}
        for number, words in enumerate(inner):
            if words:
                word = min(words, key=lambda w: (shared[w], -len(w), w))
                self.of_word.setdefault(word, []).append(number)
            else:
                self.everywhere.append(number)

    def first_in(self, text: str) -> int | None:
        """The lowest index of a string that occurs in `text`."""
        lowered = text.lower()
        return next((n for n in self.possible_in(lowered) if self.strings[n] in lowered), None)

    def possible_in(self, lowered: str) -> list[int]:
        """Rising indices of the strings that are worth looking for in a lower-case text."""
        possible = list(self.everywhere)
        for word in self.of_word.keys() & set(WORD.findall(lowered)):
            possible += self.of_word[word]
        return sorted(possible)


def _inner_words(string: str) -> set[str]:
    spans = [match.span() for match in WORD.finditer(string)]
    return {string[a:b] for a, b in spans if a > 0 and b < len(string)}
