"""Decontaminate: what the naive loop removes, and nothing else, however fast."""

import gzip
import json
import random

import pytest

from invcoder_jax.corpora.sources import read_pairs_file
from invcoder_jax.errors import UserError
from invcoder_jax.evaluation.base import Problem
from invcoder_jax.evaluation.humaneval import load_problems
from invcoder_jax.records import SelectedPair
from invcoder_jax.stages.decontaminate import (
    GENERIC_SOLUTIONS,
    BenchmarkString,
    SubstringIndex,
    benchmark_strings,
    decontaminate,
)

SUM = Problem(
    "HumanEval/53",
    'def add(x: int, y: int):\n    """Add two numbers x and y\n    >>> add(2, 3)\n    5\n    """\n',
    "    return x + y\n",
    "",
    "add",
)
GCD = Problem(
    "HumanEval/13",
    "def helper(s):\n    '''A helper that is given.'''\n    return s\n\n\n"
    "def gcd(a, b):\n    '''Return the GREATEST common divisor.'''\n",
    "    while b:\n        a, b = b, a % b\n    return a\n",
    "",
    "gcd",
)


def pair(instruction: str, response: str, name: str = "") -> SelectedPair:
    return SelectedPair(name or instruction, "s", "c", instruction, response, 0.5)


def test_docstrings_and_solutions_are_looked_for_but_no_generic_solution():
    found = {(s.task_id, s.kind): s.text for s in benchmark_strings("humaneval", [SUM, GCD])}
    assert found == {
        ("HumanEval/53", "docstring"): "Add two numbers x and y\n    >>> add(2, 3)\n    5",
        ("HumanEval/13", "docstring"): "Return the GREATEST common divisor.",
        ("HumanEval/13", "solution"): "while b:\n        a, b = b, a % b\n    return a",
    }


def test_all_of_humaneval_is_looked_for(data_folder):
    strings = benchmark_strings("humaneval")
    assert len([s for s in strings if s.kind == "docstring"]) == 164
    assert len([s for s in strings if s.kind == "solution"]) == 160
    solutions = {p.canonical_solution.strip() for p in load_problems()}
    assert set(GENERIC_SOLUTIONS) <= solutions
    rows = [pair(p.prompt.upper(), "```python\npass\n```") for p in load_problems()]
    for p in load_problems():
        rows.append(pair("Solve it.", f"```python\n{p.prompt}{p.canonical_solution}\n```"))
    assert decontaminate(rows, strings)[2]["removed"] == len(rows) == 328


def test_a_row_goes_with_what_it_held_and_the_others_stay():
    rows = [
        pair("Write the greatest COMMON divisor.", "```python\nx\n```"),
        pair("Return the greatest common divisor. Be quick.", "```python\nx\n```"),
        pair("Loop.", "```python\nwhile b:\n        a, b = b, a % b\n    return a\n```"),
        pair("Add.", "```python\nreturn x + y\n```"),
    ]
    kept, removed, counts = decontaminate(rows, benchmark_strings("humaneval", [SUM, GCD]))
    assert kept == [rows[0], rows[3]]
    assert [(r.id, r.task_id, r.kind) for r in removed] == [
        (rows[1].id, "HumanEval/13", "docstring"),
        (rows[2].id, "HumanEval/13", "solution"),
    ]
    assert removed[0].text == "Return the GREATEST common divisor."
    assert counts == {
        "rows": 4, "kept": 2, "removed": 2,
        "removed_humaneval_docstring": 1, "removed_humaneval_solution": 1,
    }  # fmt: skip


def test_the_blank_line_between_instruction_and_response_counts():
    string = BenchmarkString("humaneval", "HumanEval/0", "docstring", "end\n\n```python\nx")
    assert decontaminate([pair("The END", "```python\nx\n```")], [string])[2]["removed"] == 1
    assert decontaminate([pair("The end ", "```python\nx\n```")], [string])[2]["removed"] == 0


def naive(strings: list[str], text: str) -> int | None:
    lowered = text.lower()
    return next((n for n, s in enumerate(strings) if s.lower() in lowered), None)


def test_the_index_finds_what_the_naive_loop_finds():
    random.seed(7)
    alphabet = "aB_1 .\n(éİΣ"
    found = 0
    for _ in range(200):
        strings = ["".join(random.choices(alphabet, k=random.randint(1, 9))) for _ in range(15)]
        index = SubstringIndex(strings)
        for _ in range(20):
            text = "".join(random.choices(alphabet, k=random.randint(0, 40)))
            if random.random() < 0.3:
                text = text[:5] + random.choice(strings).upper() + text[5:]
            assert index.first_in(text) == naive(strings, text)
            found += index.first_in(text) is not None
    assert 500 < found < 3900


def test_no_row_is_dropped_without_being_counted():
    random.seed(9)
    words = ["while", "b", "return", "a", "x", "+", "y", "Add two numbers"]
    strings = [
        BenchmarkString("humaneval", str(n), "solution", " ".join(random.choices(words, k=3)))
        for n in range(20)
    ]
    rows = [pair(" ".join(random.choices(words, k=9)), "x", name=str(n)) for n in range(500)]
    kept, removed, counts = decontaminate(rows, strings)
    assert sorted([r.id for r in kept] + [r.id for r in removed]) == sorted(r.id for r in rows)
    assert 0 < counts["kept"] == len(kept) and 0 < counts["removed"] == len(removed)
    for row in removed:
        assert row.text.lower() in f"{rows[int(row.id)].instruction}\n\nx".lower()


def test_few_of_thousands_of_strings_are_looked_for_in_a_row(data_folder):
    with gzip.open(data_folder / "benchmarks" / "mbpp" / "mbpp.jsonl.gz") as file:
        mbpp = [json.loads(line) for line in file]
    strings = [row[column].strip() for row in mbpp for column in ("text", "code")]
    strings += [string.text for string in benchmark_strings("humaneval")]
    index = SubstringIndex(strings)
    rows = read_pairs_file(data_folder / "corpora" / "codeio.jsonl.gz")[::10]
    looked_for = [len(index.possible_in(f"{r.instruction}\n\n{r.response}".lower())) for r in rows]
    assert len(strings) > 2000
    assert sum(looked_for) / len(rows) < len(strings) / 50


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(UserError, match="'sudoku'"):
        benchmark_strings("sudoku")


def test_an_empty_string_is_refused():
    with pytest.raises(ValueError, match="empty string"):
        SubstringIndex(["x", ""])
