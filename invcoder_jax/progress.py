"""Progress with an ETA for anything that takes longer than a few seconds.

A bar on a terminal, a log line each LOG_EVERY seconds elsewhere. Usage:

    with track(len(rows), "summarize", "rows") as advance:
        advance(8)
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

LOG_EVERY = 15.0  # seconds between two log lines where no terminal shows a bar
log = logging.getLogger(__name__)
Advance = Callable[[int], None]


def silent(count: int) -> None:
    """The callback for a caller who wants no progress."""


@contextlib.contextmanager
def track(total: int, description: str, unit: str) -> Iterator[Advance]:
    """A callback that takes how many more units are finished."""
    if sys.stderr.isatty():
        with _bar(total, description, unit) as advance:
            yield advance
    else:
        yield _Lines(total, description, unit)


@contextlib.contextmanager
def _bar(total: int, description: str, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


class _Lines:
    """Log lines at most each LOG_EVERY seconds."""

    def __init__(self, total: int, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.finished = 0
        self.start = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        self.finished += count
        now = time.monotonic()
        if now - self.last < LOG_EVERY:
            return
        self.last = now
        rate = self.finished / (now - self.start)
        eta = (self.total - self.finished) / rate if rate else float("inf")
        log.info(
            "progress=%s done=%d total=%d unit=%s per_second=%.2f eta_seconds=%.0f",
            self.description, self.finished, self.total, self.unit, rate, eta,
        )  # fmt: skip
