"""kill -9 at any moment, then the same command again: the files are those of an undisturbed run."""

import json
import random
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import Killed, comparable_files, run_and_kill, run_tiny

from invcoder_jax.mesh import make_mesh, serve_layout
from invcoder_jax.model.decoder import params_of
from invcoder_jax.model.sources import load_model
from invcoder_jax.pipeline import STAGES

FINETUNED = ("00_finetune_teacher", "06_finetune_self", "07_finetune_original")


def stage_seconds(workdir: Path) -> dict[str, float]:
    found = {}
    for stage in STAGES:
        inside = workdir if stage.name == "corpus" else workdir / "round_0"
        manifest = json.loads((inside / stage.folder / "manifest.json").read_text())
        found[stage.name] = manifest["seconds"]
    return found


def checkpoint_arrays(workdir: Path, folder: str) -> list[np.ndarray]:
    ref = str(workdir / "round_0" / folder / "checkpoint")
    one_device = make_mesh((1, 1, 1))
    loaded = load_model(
        ref,
        lambda spec: serve_layout(one_device, spec),
        param_dtype="float32",
        compute_dtype="float32",
    )
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params_of(loaded.model))]


def assert_same_run(workdir: Path, undisturbed: Path) -> None:
    ours, theirs = comparable_files(workdir), comparable_files(undisturbed)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    for folder in FINETUNED:
        pairs = zip(
            checkpoint_arrays(workdir, folder), checkpoint_arrays(undisturbed, folder), strict=True
        )
        for one, other in pairs:
            assert one.tobytes() == other.tobytes(), folder


def kill_and_resume(workdir: Path, undisturbed: Path, stage: str, draw: random.Random) -> Killed:
    killed = run_and_kill(workdir, stage, draw.uniform(0, stage_seconds(undisturbed)[stage]))
    again = run_tiny(workdir)
    assert again.returncode == 0, again.stderr
    assert_same_run(workdir, undisturbed)
    return killed


def test_a_killed_run_ends_as_an_undisturbed_one(tiny_run, tmp_path):
    seed = int(time.time())
    print(f"seed={seed}")
    draw = random.Random(seed)
    seconds = stage_seconds(tiny_run)
    stages = draw.choices(list(seconds), weights=list(seconds.values()), k=3)
    for trial, stage in enumerate(stages):
        kill_and_resume(tmp_path / str(trial), tiny_run, stage, draw)


@pytest.mark.slow
def test_twenty_kills_hit_every_stage_and_leave_no_trace(tiny_run, tmp_path):
    seed = int(time.time())
    print(f"seed={seed}")
    draw = random.Random(seed)
    names = [stage.name for stage in STAGES]
    hits, landed = 0, set()
    for trial in range(20):
        open_stages = [name for name in names if name not in landed]
        stage = open_stages[0] if open_stages else draw.choice(names)
        killed = kill_and_resume(tmp_path / str(trial), tiny_run, stage, draw)
        hits += killed.was_running
        landed.add(killed.stage)
    print(f"hits={hits} landed={sorted(filter(None, landed))}")
    assert hits >= 15
    assert set(names) <= landed
