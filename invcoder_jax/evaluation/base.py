"""What all benchmarks share: problems, verdicts, the parallel run in the sandbox, the results.

Knows no benchmark's data and starts no process itself (sandbox/runner.py). Usage:
`run_jobs([Job("add", program, "add", check)], settings)`.
"""

import concurrent.futures
import dataclasses
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from invcoder_jax.artifacts import write_json, write_rows
from invcoder_jax.evaluation.passk import mean_pass_at_k
from invcoder_jax.progress import silent
from invcoder_jax.sandbox.runner import STATUSES, InfraError, Outcome, find_sandbox, run_python
from invcoder_jax.settings import EvaluationSettings

PASS_AT = (1, 10, 100)  # each is reported when every problem has that many samples
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task: its prompt, the reference that continues it, and `test`, which defines check()."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A row of verdicts.jsonl; base and plus are EvalPlus's two sets of tests, None if not run."""

    task_id: str
    sample: int
    status: str
    base_status: str
    plus_status: str | None


@dataclasses.dataclass(frozen=True)
class Job:
    """One program to judge: trusted `check` defines check(candidate); `name` is for messages."""

    name: str
    program: str
    entry_point: str
    check: str


def run_jobs(
    jobs: Sequence[Job],
    settings: EvaluationSettings,
    on_progress: Callable[[int], None] = silent,
) -> list[Outcome]:
    """The outcome of each job, in order; several run at once, none ends as infra_error.

    A run that other load may have spoiled is repeated alone. Raises InfraError when the machine
    twice kept a program from its verdict, and UserError when there is no sandbox.
    """
    find_sandbox(settings.allow_unsandboxed)
    outcomes: dict[int, Outcome] = {}
    with concurrent.futures.ThreadPoolExecutor(settings.workers or os.cpu_count()) as pool:
        running = {pool.submit(_run, job, settings): index for index, job in enumerate(jobs)}
        try:
            for done in concurrent.futures.as_completed(running):
                outcomes[running[done]] = done.result()
                on_progress(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for index, outcome in sorted(outcomes.items()):
        if outcome.contended:
            outcomes[index] = _run(jobs[index], settings)
    for job, (_, outcome) in zip(jobs, sorted(outcomes.items()), strict=True):
        log.debug("job=%s status=%s detail=%r", job.name, outcome.status, outcome.detail)
    return [outcomes[index] for index in range(len(jobs))]


def _run(job: Job, settings: EvaluationSettings) -> Outcome:
    sandbox = find_sandbox(settings.allow_unsandboxed)
    for _ in range(2):
        outcome = run_python(
            sandbox,
            job.program,
            job.entry_point,
            job.check,
            timeout=settings.timeout,
            memory_mb=settings.memory_mb,
        )
        if outcome.status != "infra_error":
            return outcome
        log.warning("job=%s status=infra_error detail=%r", job.name, outcome.detail)
    raise InfraError(
        f"{job.name} could not be judged in two tries ({outcome.detail}); nothing was scored, "
        "mend the machine and run again"
    )


def results(
    benchmark: str,
    verdicts: Sequence[Verdict],
    settings: EvaluationSettings,
    conditions: Mapping[str, Any],
) -> dict[str, Any]:
    """results.json's content: rates are fractions, averaged over the problems with a sample."""
    samples = Counter(verdict.task_id for verdict in verdicts)
    passed = Counter(verdict.task_id for verdict in verdicts if verdict.status == "pass")
    statuses = Counter(verdict.status for verdict in verdicts)
    counts = [(number, passed[task_id]) for task_id, number in samples.items()]
    fewest = min(samples.values(), default=1)
    rates = {f"pass@{k}": mean_pass_at_k(counts, k) for k in PASS_AT if k <= fewest}
    return {
        "benchmark": benchmark,
        "problems": len(samples),
        "samples": len(verdicts),
        "passed": statuses["pass"],
        **rates,
        "counts": {status: statuses[status] for status in STATUSES},
        "sandbox": find_sandbox(settings.allow_unsandboxed).level,
        "timeout": settings.timeout,
        "memory_mb": settings.memory_mb,
        "python": platform.python_version(),
        **conditions,
    }


def write_results(folder: Path, verdicts: Sequence[Verdict], content: Mapping[str, Any]) -> None:
    """Write verdicts.jsonl, then results.json: where the second is, the first is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "verdicts.jsonl", verdicts)
    write_json(folder / "results.json", content)
