"""The report's plots as PNG bytes, each in a light and a dark form.

Owns no reading. Series that are empty are left out; a plot without any series is not drawn.
Usage: `plot = loss_curves(turn); plot.light`.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from invcoder_jax.report.findings import (
    CANDIDATES,
    CHOSEN,
    CHOSEN_RESPONSES,
    INSTRUCTIONS,
    RESPONSES,
    Findings,
)
from invcoder_jax.report.reading import ORIGINAL, SELF, TEACHER, Round
from invcoder_jax.report.tables import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("pass_rates", "loss", "scores", "lengths")  # what a plot's name begins with
DPI = 160
SCORE_BINS, NARROW = 40, 0.2  # scores within NARROW of each other get an axis of their own
SMOOTH_FROM = 60  # steps from which a loss curve also shows its running mean
GRAY, BLUE, SAND, RUST = "#8b95a1", "#3f74b5", "#d6a24a", "#c2562d"
COLORS = {"base": GRAY, "M (teacher)": BLUE, "InverseCoder": RUST}
FINETUNES = {
    TEACHER: ("base on D (gives M)", BLUE),
    SELF: ("base on D*", SAND),
    ORIGINAL: ("then on D (gives InverseCoder)", RUST),
}
LENGTH_COLORS = {
    INSTRUCTIONS: BLUE,
    CANDIDATES: GRAY,
    CHOSEN: RUST,
    RESPONSES: BLUE,
    CHOSEN_RESPONSES: RUST,
}
THEMES = {
    "light": {"face": "#ffffff", "text": "#1f2933", "quiet": "#6b7683", "grid": "#e7eaee"},
    "dark": {"face": "#171b21", "text": "#e4e8ec", "quiet": "#98a3af", "grid": "#2a313a"},
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One plot: `light` and `dark` are the same figure as PNG bytes."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


def _plot(
    name: str,
    title: str,
    caption: str,
    size: tuple[float, float],
    draw: Callable[["Figure"], None],
) -> Plot:
    return Plot(name, title, caption, *(_render(size, draw, THEMES[t]) for t in ("light", "dark")))


def _title(text: str, turn: Round) -> str:
    return f"{text}, {turn.name}" if turn.number else text


def _render(
    size: tuple[float, float], draw: Callable[["Figure"], None], theme: Mapping[str, str]
) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "figure.facecolor": theme["face"],
        "axes.facecolor": theme["face"],
        "savefig.facecolor": theme["face"],
        "text.color": theme["text"],
        "axes.labelcolor": theme["quiet"],
        "axes.edgecolor": theme["grid"],
        "xtick.color": theme["quiet"],
        "ytick.color": theme["quiet"],
        "grid.color": theme["grid"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "font.size": 9.5,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def pass_rates(entries: Sequence[Measured], benchmark: str) -> Plot | None:
    """pass@1 of every measured model with its 95% Wilson interval."""
    shown = [(entry, entry.interval(benchmark)) for entry in entries]
    rows = [(entry, bounds) for entry, bounds in shown if bounds]
    if not rows:
        return None
    several = len({(entry.run, entry.round) for entry in entries}) > 1

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for place, (entry, (low, high)) in enumerate(rows):
            color, rate = COLORS[entry.model], 100 * entry.benchmark(benchmark)["pass@1"]
            axes.hlines(place, 100 * low, 100 * high, color=color, linewidth=3, alpha=0.45)
            axes.plot(rate, place, "o", color=color, markersize=8, clip_on=False, zorder=3)
            axes.annotate(
                f"{rate:.1f}%", (rate, place), (0, 8), textcoords="offset points", ha="center"
            )
        labels = [f"{e.run} round {e.round}: {e.name}" if several else e.name for e, _ in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("pass@1, %")

    caption = "Dot: pass@1. Bar: 95% Wilson interval over problems."
    size = (7.2, 1.1 + 0.45 * len(rows))
    return _plot(f"pass_rates_{benchmark}", f"{benchmark} pass@1", caption, size, draw)


def loss_curves(turn: Round) -> Plot | None:
    """Training loss of the finetunes that have begun, over their own steps."""
    curves = {name: turn.metrics(name) for name in FINETUNES}
    if not any(curves.values()):
        return None

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        for name, points in curves.items():
            label, color = FINETUNES[name]
            if not points:
                continue
            steps, losses = [p[0] for p in points], [p[1] for p in points]
            smooth = len(points) >= SMOOTH_FROM
            marker = "" if len(points) > 40 else "o"
            axes.plot(
                steps,
                losses,
                color=color,
                marker=marker,
                markersize=3.5,
                linewidth=0.8 if smooth else 1.8,
                alpha=0.3 if smooth else 1,
                label=None if smooth else label,
            )
            if smooth:
                axes.plot(steps, _running_mean(losses), color=color, linewidth=1.9, label=label)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("nats a response token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()

    caption = (
        "Training loss on response tokens. D* and D are different texts, so only the two curves "
        "on D compare with each other."
    )
    if any(len(points) >= SMOOTH_FROM for points in curves.values()):
        caption += " Thin: each step. Thick: mean over the last twentieth of the run's steps."
    return _plot(f"loss_{turn.name}", _title("Training loss", turn), caption, (7.2, 3.4), draw)


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean of a window of a twentieth of the run that ends at each step."""
    window = max(1, len(values) // 20)
    spans = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(span) / len(span) for span in spans]


def score_histogram(turn: Round, found: Findings) -> Plot | None:
    """LM-scores of all candidates beside those of the chosen ones."""
    series = {
        "all candidates": [s for s in found.all_scores if math.isfinite(s)],
        "chosen": [s for s in found.chosen_scores if math.isfinite(s)],
    }
    if not series["all candidates"]:
        return None
    low, high = _score_range([score for values in series.values() for score in values])
    width = (high - low) / SCORE_BINS

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        edges = [low + width * bin for bin in range(SCORE_BINS)] + [high]
        for (name, values), color in zip(series.items(), (GRAY, RUST), strict=True):
            _shares(axes, values, edges, f"{name}, n = {len(values):,}", color)
        axes.set_xlim(low, high)
        axes.set_xlabel("LM-score, P(Yes)")
        axes.set_ylabel("% of its series")
        axes.legend()

    means = [f"{name} {sum(v) / len(v):.4f}" for name, v in series.items() if v]
    caption = f"Mean LM-score: {', '.join(means)}. Bins are {width:.4g} wide."
    caption += "" if high - low == 1 else " The axis shows a part of 0 to 1."
    broken = len(found.all_scores) - len(series["all candidates"])
    caption += f" Scores that are not numbers and left out: {broken:,}." if broken else ""
    return _plot(f"scores_{turn.name}", _title("LM-scores", turn), caption, (7.2, 3.0), draw)


def _score_range(scores: Sequence[float]) -> tuple[float, float]:
    """0 to 1, or the hundredths around scores that all lie close together."""
    low, high = math.floor(100 * min(scores)) / 100, math.ceil(100 * max(scores)) / 100
    if high - low > NARROW:
        return 0.0, 1.0
    return low, max(high, low + 0.01)


def length_histograms(turn: Round, found: Findings) -> Plot | None:
    """Lengths of instructions and of responses, D beside what the model made."""
    panels = {
        "Instructions": [INSTRUCTIONS, CANDIDATES, CHOSEN],
        "Responses": [RESPONSES, CHOSEN_RESPONSES],
    }
    if not any(found.lengths.values()):
        return None
    beyond: list[str] = []

    def draw(figure: "Figure") -> None:
        beyond.clear()
        for place, (title, names) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, 2, place)
            values = {name: found.lengths.get(name, []) for name in names}
            top = _nearly_all([n for series in values.values() for n in series])
            edges = [top * bin / 32 for bin in range(33)]
            for name, series in values.items():
                longer = sum(n > top for n in series)
                if longer:
                    beyond.append(f"{longer:,} of the {name}")
                _shares(axes, series, edges, f"{name}, n = {len(series):,}", LENGTH_COLORS[name])
            axes.set_title(title)
            axes.set_xlim(0, top)
            axes.set_xlabel(found.unit)
            axes.set_ylabel("% of its series" if place == 1 else "")
            if any(values.values()):
                axes.legend(fontsize=8)

    plot = _plot(f"lengths_{turn.name}", _title("Lengths", turn), "", (7.2, 3.2), draw)
    sampled = [f"every {n}. of the {name}" for name, n in found.every.items() if n > 1]
    caption = f"Lengths in {found.unit}."
    caption += f" Longer than the axis: {', '.join(beyond)}." if beyond else ""
    caption += f" Measured on {', '.join(sampled)}." if sampled else ""
    return dataclasses.replace(plot, caption=caption)


def _nearly_all(values: Sequence[int]) -> int:
    """A round length that at most 1% of the values exceed."""
    if not values:
        return 1
    top = max(1, sorted(values)[math.ceil(0.99 * len(values)) - 1])
    unit = 10 ** max(0, math.floor(math.log10(top)) - 1)
    return math.ceil(top / unit) * unit


def _shares(
    axes: "Axes", values: Sequence[float], edges: Sequence[float], label: str, color: str
) -> None:
    """A step histogram in percent of the whole series; an empty series is left out."""
    if not values:
        return
    weights = [100 / len(values)] * len(values)
    axes.margins(y=0.25)  # room for the legend
    axes.hist(values, edges, weights=weights, histtype="stepfilled", color=color, alpha=0.22)
    axes.hist(
        values, edges, weights=weights, histtype="step", color=color, linewidth=1.6, label=label
    )
