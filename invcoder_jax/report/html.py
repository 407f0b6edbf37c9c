"""The report as one HTML page that needs nothing but itself.

Rows are written by models and must never become markup: static text passes through `escape`, the
browsed rows are JSON that the script shows as text, and a content policy with the hashes of our
own script and style forbids everything else. Usage: `page(runs, tables, plots, found)`.
"""

import base64
import datetime
import hashlib
import html
import json
from collections.abc import Sequence
from typing import Any

from invcoder_jax.artifacts import code_version
from invcoder_jax.report.assets import BROWSER, SCRIPT, STYLE
from invcoder_jax.report.findings import Findings
from invcoder_jax.report.plots import Plot
from invcoder_jax.report.reading import (
    DECONTAMINATE,
    PREPROCESS,
    SELECT,
    SUMMARIZE,
    Run,
)
from invcoder_jax.report.tables import Table

LONG_CELL = 36  # characters from which a cell may break over lines


def page(
    runs: Sequence[Run], tables: Sequence[Table], plots: Sequence[Plot], found: Findings
) -> str:
    """The whole page; the first table holds the results, the last one the settings.

    Tables are of all runs, loss curves, histograms and snippets of the first.
    """
    of_first = f'<p class="quiet">Of {escape(runs[0].label)}.</p>' if len(runs) > 1 else ""
    rates = "".join(_figure(plot) for plot in plots if plot.name.startswith("pass_rates"))
    figures = "".join(_figure(plot) for plot in plots if not plot.name.startswith("pass_rates"))
    settings = f"<details><summary>every setting</summary>{_table(tables[-1])}</details>"
    sections = [
        ("results", "Results", _table(tables[0]) + rates),
        *((table.name, table.title, _table(table)) for table in tables[1:-1]),
        ("plots", "Plots", of_first + (figures or _missing("no data yet"))),
        ("pairs", "Snippets and candidates", of_first + _browser(runs[0], found)),
        ("settings", "Settings", settings),
    ]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(title)}</h2>{text}</section>'
        for name, title, text in sections
    )
    names = ", ".join(run.label for run in runs)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Inverse-Instruct: {escape(names)}</title><style>{STYLE}</style></head>\n"
        f"<body><header><h1>Inverse-Instruct: {escape(names)}</h1>{_summary(runs)}"
        f"<nav>{links}</nav>{of_first}{_flow(runs[0])}{_notes(runs)}</header>\n<main>{body}"
        f"<footer>{_written()}</footer></main>{_scripts(found)}</body></html>\n"
    )


def _scripts(found: Findings) -> str:
    """The snippets as data and the script that shows them, or nothing where there are none."""
    if not found.shown:
        return ""
    data = embedded(list(found.shown.values()))
    return (
        f'\n<script id="pairs-data" type="application/json">{data}</script>\n'
        f"<script>{SCRIPT}</script>"
    )


def embedded(data: Any) -> str:
    """JSON that is safe inside a script element, whatever the rows say; it holds no URL as such."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.replace("://", ":\\/\\/")


def escape(text: str) -> str:
    """Text as HTML text or attribute value; an address in it is shown, but never stands as such."""
    return html.escape(text).replace("://", "&#58;//")


def _policy() -> str:
    """Nothing is loaded, and nothing runs but this script and this style, known by their hashes."""
    script, style = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (SCRIPT, STYLE)
    )
    return (
        f"default-src 'none'; img-src data:; script-src 'sha256-{script}'; "
        f"style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    )


def _summary(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        model = run.settings.get("model", {}).get("base", "")
        about = f"config {run.config}" + (f", base model {model}" if model else "")
        parts.append(f"{run.label}: {about}" if len(runs) > 1 else about)
    return f'<p class="quiet">{escape("; ".join(parts))}</p>'


def _flow(run: Run) -> str:
    """How many rows are left at each step of the last round."""
    turn = run.rounds[-1]
    steps = [("pairs of D", run.corpus)]
    names = {PREPROCESS: "snippets", SUMMARIZE: "candidates", SELECT: "chosen", DECONTAMINATE: "D*"}
    steps += [(text, turn.stage(name)) for name, text in names.items()]
    items = "".join(
        f"<li><b>{stage.rows:,}</b>{escape(text)}</li>"
        if stage.rows is not None
        else f'<li><b class="unknown">{escape(stage.state())}</b>{escape(text)}</li>'
        for text, stage in steps
    )
    return f'<ul class="flow" aria-label="rows of {escape(run.label)}">{items}</ul>'


def _notes(runs: Sequence[Run]) -> str:
    notes = [
        f"{run.label}: {note}" if len(runs) > 1 else note for run in runs for note in run.notes()
    ]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes"><ul>{items}</ul></div>' if notes else ""


def _table(table: Table) -> str:
    if not table.rows:
        return _missing("not there yet")
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'<p class="quiet">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _cell(text: str) -> str:
    kind = ' class="long"' if len(text) > LONG_CELL else ""
    return f"<td{kind}>{escape(text)}</td>"


def _figure(plot: Plot) -> str:
    light, dark = (
        f"data:image/png;base64,{base64.b64encode(image).decode()}"
        for image in (plot.light, plot.dark)
    )
    title, caption = escape(plot.title), escape(plot.caption)
    return (
        f"<h3>{title}</h3><figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{title}. {caption}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _browser(run: Run, found: Findings) -> str:
    if not found.shown:
        return _missing(f"not there yet: stage {PREPROCESS}")
    shown = f"{len(found.shown):,} of {found.snippets:,} snippets of {run.rounds[-1].name}"
    spread = ", spread evenly over the run" if len(found.shown) < found.snippets else ""
    said = f"This page holds {shown}{spread}. Scores are P(Yes) of M itself."
    return f'<p class="quiet">{escape(said)}</p>{BROWSER}'


def _missing(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'


def _written() -> str:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return escape(f"Written on {now} by invcoder_jax {code_version()}.")
