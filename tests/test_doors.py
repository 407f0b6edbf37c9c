"""The doors that take and give files: their columns, their defaults, and how they go on."""

import json
import math
import shutil
from pathlib import Path

import pytest
from processes import invcoder

from invcoder_jax import cli


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def call(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def test_generate_writes_one_row_a_sample_in_order(tmp_path):
    prompts = write_rows(tmp_path / "in.jsonl", [{"id": n, "prompt": f"say {n}"} for n in "abc"])
    output = tmp_path / "out.jsonl"
    call(
        "generate", "--model=random:tiny", f"--input={prompts}", f"--output={output}",
        "--num_samples=2", "--temperature=0.8", "--max_new_tokens=4", "--rows=8",
    )  # fmt: skip
    rows = read_rows(output)
    assert [(row["id"], row["sample"]) for row in rows] == [(n, k) for n in "abc" for k in (0, 1)]
    for row in rows:
        assert list(row) == ["id", "sample", "text", "token_ids", "finish_reason"]
        assert len(row["token_ids"]) <= 4
    assert list(tmp_path.glob("*.parts")) == []


def test_score_gives_both_logits_and_their_softmax(tmp_path):
    rows = [
        {"id": "as it is", "prompt": "Is it right?"},
        {"id": "wrapped", "instruction": "Add two numbers.", "response": "```python\na + b\n```"},
    ]
    output = tmp_path / "out.jsonl"
    inputs = write_rows(tmp_path / "in.jsonl", rows)
    call("score", "--model=random:tiny", f"--input={inputs}", f"--output={output}", "--rows=8")
    scored = read_rows(output)
    assert [row["id"] for row in scored] == ["as it is", "wrapped"]
    for row in scored:
        assert list(row) == ["id", "yes_logit", "no_logit", "yes_probability"]
        odds = math.exp(row["no_logit"] - row["yes_logit"])
        assert row["yes_probability"] == pytest.approx(1 / (1 + odds), rel=1e-9)


def test_preprocess_counts_every_row_once(tmp_path, capsys):
    pairs = [
        {"instruction": "Add.", "response": "Sure:\n```python\nx = 1 + 1\n```\nDone."},
        {"instruction": "Talk.", "response": "I would rather not."},
        {"instruction": "Sub.", "response": "def f(a, b):\n    return a - b"},
    ]
    corpus = write_rows(tmp_path / "corpus.jsonl", pairs)
    call("preprocess", f"--input={corpus}", f"--output={tmp_path}/snippets.jsonl")
    counts = dict(line.split("=") for line in capsys.readouterr().out.split())
    assert (counts["rows"], counts["fenced"], counts["parsed"], counts["no_code"]) == (
        "3", "1", "1", "1",
    )  # fmt: skip
    blocks = [row["block"] for row in read_rows(tmp_path / "snippets.jsonl")]
    assert blocks[0] == "```python\nx = 1 + 1\n```"


def test_evaluate_judges_a_file_of_samples(tmp_path, capsys):
    samples = write_rows(
        tmp_path / "samples.jsonl",
        [
            {"task_id": "HumanEval/53", "completion": "    return x + y\n"},
            {"task_id": "HumanEval/23", "solution": "def strlen(s):\n    return 0\n"},
        ],
    )
    call("evaluate", "--benchmark=humaneval", f"--samples={samples}", f"--output={tmp_path}/out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["problems"], results["passed"], results["pass@1"]) == (2, 1, 0.5)
    assert "pass@1=0.5" in capsys.readouterr().out
    verdicts = read_rows(tmp_path / "out" / "verdicts.jsonl")
    assert [row["status"] for row in verdicts] == ["pass", "fail"]


def test_evaluate_completes_and_judges_a_model(tmp_path):
    call(
        "evaluate", "--benchmark=humaneval", "--model=random:tiny", f"--output={tmp_path}/out",
        "--every=82", "--max_new_tokens=4", "--rows=8",
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["problems"], results["samples"]) == (2, 2)


def test_report_and_status_show_a_run(tiny_run, tmp_path, capsys):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")  # the report is written into it
    call("report", f"--workdir={workdir}")
    shown = capsys.readouterr().out
    for row in ("base", "M (teacher)", "InverseCoder"):
        assert row in shown
    assert (workdir / "report" / "report.html").stat().st_size > 10_000
    call("status", f"--workdir={workdir}")
    assert "summarize" in capsys.readouterr().out


def test_every_command_has_help_with_an_example(capsys):
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert f"Example: invcoder {name}" in capsys.readouterr().out


def test_sigterm_says_that_it_can_be_run_again(tmp_path, monkeypatch):
    def stopped(values, arguments):
        raise cli.Preempted("stopped by SIGTERM")

    monkeypatch.setitem(cli.COMMANDS, "status", cli.COMMANDS["status"]._replace(call=stopped))
    assert cli.main(["status", f"--workdir={tmp_path}"]) == cli.TRY_AGAIN


def test_the_command_line_is_installed():
    assert "invcoder COMMAND --help" in invcoder().stdout
