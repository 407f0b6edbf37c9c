"""Progress: a bar on a terminal, lines with an ETA elsewhere, and never a crash at zero."""

import logging

from invcoder_jax import progress


def test_lines_say_done_total_rate_and_eta(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress.track(100, "summarize", "rows") as advance:
        for seconds in (1.0, 10.0, 20.0, 21.0):
            now[0] = seconds
            advance(10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "progress=summarize done=30 total=100 unit=rows per_second=1.50 eta_seconds=47"
    ]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.track(4, "judge", "programs") as advance:
        advance(3)
        advance(1)


def test_no_progress_at_all_is_no_error(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress.track(0, "nothing", "rows") as advance:
        now[0] = 60.0
        advance(0)
    assert "eta_seconds=inf" in caplog.text
