"""The report's tables: what they hold, and their Markdown and CSV forms.

Every number carries its n; unmeasured is said in words. Usage: `markdown(results([run]))`.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invcoder_jax.report.reading import MODELS, NOT_YET, Run, Stage, flatten, open_run

NOT_MEASURED = "not measured"
STATUSES = ("pass", "fail", "timeout", "oom", "infra_error")
COUNTED = ("problems", "samples", "passed")
Z_95 = 1.959963984540054  # two-sided 95% quantile of the normal distribution


@dataclasses.dataclass(frozen=True)
class Table:
    """`rows` are texts to read, `data` the same numbers unrounded, for the CSV file."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    data: tuple[Mapping[str, Any], ...]
    note: str = ""


def markdown(table: Table) -> str:
    """A GitHub Markdown table with aligned columns, then its note."""
    lines = [[_markdown_cell(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = "".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )
    return f"{text}\n{table.note}\n" if table.note else text


def _markdown_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def comma_separated(table: Table) -> str:
    """The table's unrounded data as CSV with a header line."""
    columns = list(dict.fromkeys(name for row in table.data for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.data)
    return file.getvalue()


def wilson(rate: float, n: int) -> tuple[float, float]:
    """The 95% Wilson score interval of a rate seen in n trials (Wilson 1927)."""
    if n < 1:
        raise ValueError(f"a rate of {n} trials has no interval; give n of 1 or more")
    shrink = 1 + Z_95**2 / n
    center = (rate + Z_95**2 / (2 * n)) / shrink
    half = Z_95 * math.sqrt(rate * (1 - rate) / n + Z_95**2 / (4 * n * n)) / shrink
    return max(0.0, center - half), min(1.0, center + half)


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 60 else f"{hours:.1f} h"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model's results in one round of one run; `result` is None before it has been measured."""

    run: str
    round: int
    model: str
    result: Mapping[str, Any] | None
    outdated: bool = False

    @property
    def name(self) -> str:
        """The model as tables show it."""
        return f"{self.model}, out of date" if self.outdated and self.result else self.model

    def benchmark(self, name: str) -> Mapping[str, Any]:
        """The benchmark's numbers, or an empty mapping."""
        return self.result["benchmarks"].get(name, {}) if self.result else {}

    def rate(self, name: str, metric: str = "pass@1") -> str:
        """A pass rate with what it was counted on."""
        found = self.benchmark(name)
        if metric not in found:
            return NOT_MEASURED if self.result else NOT_YET
        problems, samples = found["problems"], found["samples"]
        if metric == "pass@1" and problems == samples:
            return f"{found[metric]:.1%} ({found['passed']} of {problems})"
        each = f", {samples / problems:g} samples each" if problems != samples else ""
        return f"{found[metric]:.1%} ({problems} problems{each})"

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95% Wilson interval of pass@1; n is the number of problems, not of samples."""
        found = self.benchmark(name)
        return wilson(found["pass@1"], found["problems"]) if found.get("problems") else None

    def heldout(self) -> str:
        """The held-out loss with what it was counted on."""
        if self.result is None:
            return NOT_YET
        found = self.result.get("heldout") or {}
        if not found.get("pairs"):
            return NOT_MEASURED
        return f"{found['loss']:.4f} ({found['pairs']} pairs, {found['tokens']:,} tokens)"


def measured(runs: Sequence[Run]) -> list[Measured]:
    """Three entries, base, M and InverseCoder, for each round of each run."""
    return [
        Measured(run.label, turn.number, name, found.get(model), turn.outdated(model))
        for run in runs
        for turn in run.rounds
        for found in [turn.results()]
        for model, name in MODELS.items()
    ]


def benchmark_names(runs: Sequence[Run]) -> list[str]:
    """Benchmarks that any run has measured or means to measure, in order."""
    names: dict[str, None] = {}
    for run in runs:
        names |= dict.fromkeys(run.settings.get("evaluation", {}).get("benchmarks", ()))
        for turn in run.rounds:
            for result in turn.results().values():
                names |= dict.fromkeys(result["benchmarks"])
    return list(names)


def results(runs: Sequence[Run]) -> Table:
    """Three rows a round: pass rates with n and intervals, and the held-out loss."""
    entries, names = measured(runs), benchmark_names(runs)
    rates = [
        (name, metric) for name in names for metric in _metrics(entries, name)
    ]  # pass@1 first, then other k
    columns = [*_origin_columns(runs), "model"]
    for name, metric in rates:
        columns += [f"{name} {metric}"] + (["95% interval"] if metric == "pass@1" else [])
    rows = []
    for entry in entries:
        row = [*_origin(runs, entry.run, entry.round), entry.name]
        for name, metric in rates:
            row.append(entry.rate(name, metric))
            if metric == "pass@1":
                bounds = entry.interval(name)
                row.append(f"{bounds[0]:.1%} to {bounds[1]:.1%}" if bounds else "")
        rows.append((*row, entry.heldout()))
    return Table(
        "results",
        "Results",
        (*columns, "held-out loss"),
        tuple(rows),
        tuple(row for entry in entries for row in _result_data(entry, names)),
        "Intervals are 95% Wilson score intervals over problems. "
        "Held-out loss: mean cross-entropy in nats a response token, lower is better.",
    )


def _metrics(entries: Sequence[Measured], benchmark: str) -> list[str]:
    found = {name for e in entries for name in e.benchmark(benchmark) if name.startswith("pass@")}
    return sorted(found | {"pass@1"}, key=lambda name: int(name.removeprefix("pass@")))


def _result_data(entry: Measured, names: Sequence[str]) -> list[dict[str, Any]]:
    heldout = (entry.result or {}).get("heldout") or {}
    rows = []
    for name in names or [""]:
        low, high = entry.interval(name) or (None, None)
        found = entry.benchmark(name)
        numbers = {k: v for k, v in found.items() if k in COUNTED or k.startswith("pass@")}
        rows.append(
            {
                "run": entry.run,
                "round": entry.round,
                "model": entry.model,
                "outdated": entry.outdated,
                "ref": (entry.result or {}).get("ref"),
                "benchmark": name,
                "interval_low": low,
                "interval_high": high,
                **{f"heldout_{k}": heldout.get(k) for k in ("loss", "pairs", "tokens")},
                **numbers,
            }
        )
    return rows


def _origin_columns(runs: Sequence[Run]) -> list[str]:
    several_rounds = any(len(run.rounds) > 1 for run in runs)
    return ["run"] * (len(runs) > 1) + ["round"] * several_rounds


def _origin(runs: Sequence[Run], label: str, number: int) -> list[str]:
    columns = _origin_columns(runs)
    return [value for name, value in (("run", label), ("round", str(number))) if name in columns]


def verdicts(runs: Sequence[Run]) -> Table:
    """How the programs of each model ended."""
    rows, data = [], []
    for entry in measured(runs):
        for benchmark in benchmark_names(runs):
            counts = entry.benchmark(benchmark).get("counts")
            cells = [str(counts.get(status, 0)) if counts else NOT_YET for status in STATUSES]
            origin = _origin(runs, entry.run, entry.round)
            rows.append((*origin, entry.name, benchmark, *cells))
            data.append(
                {"run": entry.run, "round": entry.round, "model": entry.model}
                | {"benchmark": benchmark, **{s: (counts or {}).get(s) for s in STATUSES}}
            )
    columns = (*_origin_columns(runs), "model", "benchmark", *STATUSES)
    note = "oom: out of memory. infra_error: the sandbox itself failed, not the program."
    return Table("verdicts", "Verdicts", columns, tuple(rows), tuple(data), note)


def conditions(runs: Sequence[Run]) -> Table:
    """How the results were measured, a column a run; rows that differ between runs are marked."""
    said = {
        (run.label, turn.number): flatten(turn.conditions()) for run in runs for turn in run.rounds
    }
    several = any(len(run.rounds) > 1 for run in runs)
    heads = [f"{label} round {number}" if several else label for label, number in said]
    return _side_by_side("conditions", "Conditions", "condition", heads, list(said.values()))


def settings(runs: Sequence[Run]) -> Table:
    """Every setting, a column a run; settings that differ between runs are marked."""
    flat = [flatten(run.settings) for run in runs]
    return _side_by_side("settings", "Settings", "setting", [run.label for run in runs], flat)


def _side_by_side(
    name: str, title: str, kind: str, heads: list[str], values: list[dict[str, str]]
) -> Table:
    fields = list(dict.fromkeys(field for one in values for field in one))
    rows, data = [], []
    for field in fields:
        cells = [one.get(field, "not stated" if one else NOT_YET) for one in values]
        mark = " (differs)" if len({one.get(field) for one in values if one}) > 1 else ""
        rows.append((field + mark, *(json.loads(c) if c[:1] == '"' else c for c in cells)))
        data.append({kind: field} | dict(zip(heads, cells, strict=True)))
    return Table(name, title, (kind, *heads), tuple(rows), tuple(data))


def stages(runs: Sequence[Run]) -> Table:
    """Each stage with its rows, what it counted, its time and its state."""
    rows, data = [], []
    for run in runs:
        for name, number, stage in run.stages():
            origin = (run.label,) if len(runs) > 1 else ()
            rows.append((*origin, name, *_stage_cells(stage)))
            data.append({"run": run.label, "round": number, **_stage_data(stage)})
    columns = ("stage", "rows", "counted", "time", "state")
    columns = ("run", *columns) if len(runs) > 1 else columns
    return Table("stages", "Stages", columns, tuple(rows), tuple(data))


def _stage_cells(stage: Stage) -> tuple[str, ...]:
    manifest = stage.manifest or {}
    counts = manifest.get("counts", {})
    counted = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items())
    rows = "" if stage.rows is None else f"{stage.rows:,}"
    time = duration(manifest.get("seconds")) if stage.done else ""
    return rows, counted, time, stage.state()


def _stage_data(stage: Stage) -> dict[str, Any]:
    manifest = stage.manifest or {}
    return {
        "stage": stage.name,
        "state": stage.state(),
        "rows": stage.rows,
        "counts": json.dumps(manifest.get("counts", {})),
        **{k: manifest.get(k) for k in ("seconds", "finished_at", "code_version")},
        "hosts": " ".join(manifest.get("hosts", ())),
    }


def results_table(workdir: Path) -> str:
    """The results of a workdir for the terminal, then what is missing or out of date."""
    run = open_run(workdir)
    return "\n".join([markdown(results([run])), *run.notes()]).rstrip()


def stage_times(workdir: Path) -> str:
    """A line for each stage with its seconds, then the sum of the finished ones."""
    stages = open_run(workdir).stages()
    width = max(len("finished stages"), *(len(name) for name, _, _ in stages))
    seconds = [(stage.manifest or {}).get("seconds") for _, _, stage in stages]
    lines = [
        f"{name:<{width}}  " + (stage.state() if taken is None else f"{taken:10.1f} s")
        for (name, _, stage), taken in zip(stages, seconds, strict=True)
    ]
    total = sum(taken for taken in seconds if taken is not None)
    return "\n".join([*lines, f"{'finished stages':<{width}}  {total:10.1f} s"])


def status_table(workdir: Path) -> str:
    """The stages of a workdir for the terminal: rows, counts by reason, time and state."""
    return markdown(stages([open_run(workdir)])).rstrip()
