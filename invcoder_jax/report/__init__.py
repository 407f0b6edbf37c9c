"""The report of a finished or half-finished run: tables, plots and one self-contained page.

Reads workdirs only, never a model. Usage: `files = write_report([Path("runs/quickstart")])`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from invcoder_jax.artifacts import write_atomic
from invcoder_jax.errors import UserError
from invcoder_jax.report import html, plots, tables
from invcoder_jax.report.findings import Findings, gather
from invcoder_jax.report.plots import Plot
from invcoder_jax.report.reading import Run, open_runs

MOST_SHOWN = 500  # snippets embedded in the page, some 5 kB each


@dataclasses.dataclass(frozen=True)
class ReportFiles:
    """What a report consists of; `html` is the page that needs none of the others."""

    folder: Path
    html: Path
    tables: tuple[Path, ...]
    plots: tuple[Path, ...]


def write_report(workdirs: Sequence[Path], most_shown: int = MOST_SHOWN) -> ReportFiles:
    """Write <first workdir>/report/; UserError when a folder is no workdir.

    Tables set all runs side by side; loss curves, histograms and snippets are of the first run.
    """
    runs = open_runs(list(workdirs))
    folder = runs[0].path / "report"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}); give a workdir that can be written first"
        ) from error
    built = [
        tables.results(runs),
        tables.conditions(runs),
        tables.verdicts(runs),
        tables.stages(runs),
        tables.settings(runs),
    ]
    table_files = []
    for table in built:
        forms = {".md": tables.markdown(table), ".csv": tables.comma_separated(table)}
        table_files += [_write(folder / (table.name + end), text) for end, text in forms.items()]
    drawn, found = _draw(runs, most_shown)
    for kind in plots.KINDS:
        for old in folder.glob(f"{kind}_*.png"):
            old.unlink()
    plot_files = []
    for plot in drawn:
        write_atomic(folder / f"{plot.name}.png", plot.light)
        plot_files.append(folder / f"{plot.name}.png")
    page = _write(folder / "report.html", html.page(runs, built, drawn, found))
    return ReportFiles(folder, page, tuple(table_files), tuple(plot_files))


def _draw(runs: Sequence[Run], most_shown: int) -> tuple[list[Plot], Findings]:
    """The plots, and what the rows of the first run's last round say."""
    entries = tables.measured(runs)
    drawn = [plots.pass_rates(entries, name) for name in tables.benchmark_names(runs)]
    findings = [gather(runs[0], turn, most_shown) for turn in runs[0].rounds]
    for turn, found in zip(runs[0].rounds, findings, strict=True):
        drawn.append(plots.loss_curves(turn))
        drawn.append(plots.score_histogram(turn, found))
        drawn.append(plots.length_histograms(turn, found))
    return [plot for plot in drawn if plot], findings[-1]


def _write(path: Path, text: str) -> Path:
    write_atomic(path, text.encode())
    return path
