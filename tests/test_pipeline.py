"""The loop on the tiny config: what it leaves, what a second run does, what a change reruns."""

import json
import re
import shutil
from pathlib import Path

import pytest
from processes import invcoder, run_tiny

from invcoder_jax.artifacts import StageFolder
from invcoder_jax.pipeline import STAGES
from invcoder_jax.records import Candidate, Pair, Score, SelectedPair, Snippet


def folder(workdir: Path, stage: str) -> StageFolder:
    found = next(one for one in STAGES if one.name == stage)
    return StageFolder((workdir if stage == "corpus" else workdir / "round_0") / found.folder)


def stages_said(stderr: str, word: str) -> list[str]:
    return re.findall(rf"stage=(\w+) {word}", stderr)


@pytest.fixture
def copied_run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_every_stage_leaves_a_manifest_with_its_counts(tiny_run):
    for stage in STAGES:
        manifest = folder(tiny_run, stage.name).manifest()
        assert manifest["stage"] == stage.name
        assert manifest["counts"]


def test_rows_are_joined_by_id_from_pair_to_selected_pair(tiny_run):
    pairs = {row.id for row in folder(tiny_run, "corpus").read_all(Pair)}
    snippets = {row.id: row for row in folder(tiny_run, "preprocess").read_all(Snippet)}
    candidates = {row.id: row for row in folder(tiny_run, "summarize").read_all(Candidate)}
    scores = {row.candidate_id: row for row in folder(tiny_run, "self_evaluate").read_all(Score)}
    chosen = list(folder(tiny_run, "select").read_all(SelectedPair))
    assert len(pairs) == 16
    assert {row.pair_id for row in snippets.values()} <= pairs
    assert len(candidates) == 3 * len(snippets)
    assert set(scores) == set(candidates)
    assert len(chosen) == len(snippets)
    for row in chosen:
        rivals = [s for s in scores.values() if s.snippet_id == row.snippet_id]
        assert row.yes_probability == max(s.yes_probability for s in rivals)
        assert row.response == snippets[row.snippet_id].block
        assert row.instruction == candidates[row.candidate_id].instruction


def test_heldout_pairs_are_not_trained_on(tiny_run):
    heldout = (tiny_run / "corpus" / "heldout.jsonl").read_text().splitlines()
    assert len(heldout) == 4
    trained = {row.response for row in folder(tiny_run, "corpus").read_all(Pair)}
    assert not trained & {json.loads(line)["response"] for line in heldout}


def test_results_hold_three_models_with_their_conditions(tiny_run):
    results = json.loads((folder(tiny_run, "benchmark").path / "results.json").read_text())
    assert [model["model"] for model in results["models"]] == ["base", "teacher", "inversecoder"]
    for model in results["models"]:
        assert model["benchmarks"]["humaneval"]["problems"] == 4
        assert model["heldout"]["pairs"] == 4
        assert model["heldout"]["loss"] > 0
    assert results["conditions"]["temperature"] == 0.0


def test_a_second_run_does_nothing_again(copied_run):
    before = {path: path.stat().st_mtime_ns for path in copied_run.rglob("part-*.jsonl")}
    again = run_tiny(copied_run)
    assert again.returncode == 0, again.stderr
    assert stages_said(again.stderr, "started") == []
    assert len(stages_said(again.stderr, "already_done")) == len(STAGES)
    assert before == {path: path.stat().st_mtime_ns for path in copied_run.rglob("part-*.jsonl")}


def test_a_changed_setting_reruns_what_depends_on_it_and_says_why(copied_run):
    changed = run_tiny(copied_run, "--config.select.top=2", "--config.generation.rows=4")
    assert changed.returncode == 0, changed.stderr
    assert stages_said(changed.stderr, "started") == [
        "select",
        "decontaminate",
        "finetune_self",
        "finetune_original",
        "benchmark",
    ]
    assert "stage=select changed=select.top 1 -> 2" in changed.stderr
    assert "stage=decontaminate changed=input select changed" in changed.stderr
    assert "base_humaneval" in changed.stderr
    back = run_tiny(copied_run)
    assert stages_said(back.stderr, "restored") == [
        "select",
        "decontaminate",
        "finetune_self",
        "finetune_original",
    ]


def test_a_ready_teacher_skips_its_finetuning(tmp_path):
    done = invcoder(
        "stage", "summarize", "--config=configs/tiny.py", f"--workdir={tmp_path}/w",
        "--config.model.teacher=random:tiny",
    )  # fmt: skip
    assert done.returncode == 2
    assert "run `invcoder stage preprocess` first" in done.stderr
    for name in ("corpus", "preprocess", "summarize"):
        done = invcoder(
            "stage", name, "--config=configs/tiny.py", f"--workdir={tmp_path}/w",
            "--config.model.teacher=random:tiny",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "w" / "round_0" / "00_finetune_teacher").exists()
