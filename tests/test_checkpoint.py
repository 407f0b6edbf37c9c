"""checkpoint.py: what was saved comes back, on any mesh, through kills, damage and full disks."""

import contextlib
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import NamedSharding
from processes import REPOSITORY, environment

from invcoder_jax import checkpoint
from invcoder_jax.checkpoint import Checkpoints
from invcoder_jax.errors import UserError
from invcoder_jax.mesh import make_mesh
from invcoder_jax.tokenization import byte_tokenizer, load_tokenizer

WEIGHT, BIAS = (8, 24), (6,)


def tree(step: int) -> dict:
    draw = np.random.default_rng(step)
    return {
        "weight": jnp.asarray(draw.normal(size=WEIGHT), jnp.float32),
        "deep": {"bias": jnp.asarray(draw.normal(size=BIAS), jnp.float32)},
    }


def like(shape=(1, 1, 1), dtype=jnp.float32) -> dict:
    mesh = make_mesh(shape)

    def struct(size, spec):
        return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec))

    return {"weight": struct(WEIGHT, P("fsdp", "model")), "deep": {"bias": struct(BIAS, P())}}


def save(folder: Path, *steps: int, keep: int = 3) -> None:
    checkpoint.describe(folder, {"layers": 2}, byte_tokenizer())
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree(step), {"count": jnp.int32(step)}, {"loss": step / 8})


def assert_equal(found: dict, wanted: dict) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    save(folder, 1, 2)
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_a_run_gets_back_what_it_saved(saved):
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(make_mesh((1, 1, 1)), P()))
    with Checkpoints(saved, keep=3) as checkpoints:
        assert checkpoints.latest() == 2
        assert checkpoints.meta(1) == {"loss": 0.125}
        params, opt_state = checkpoints.restore(1, like(), {"count": count})
    assert_equal(params, tree(1))
    assert opt_state["count"] == 1


def test_weights_are_restored_onto_another_mesh_in_another_dtype(saved):
    wanted = like((2, 2, 2), jnp.bfloat16)
    found = checkpoint.restore_params(saved, wanted)
    assert found["weight"].sharding == wanted["weight"].sharding
    assert_equal(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree(2)))


def test_a_checkpoint_folder_says_what_it_is(saved, tmp_path):
    assert checkpoint.is_checkpoint(saved) and not checkpoint.is_checkpoint(tmp_path)
    assert checkpoint.read_spec(saved) == {"layers": 2}
    assert load_tokenizer(saved).eos_ids == byte_tokenizer().eos_ids


def test_only_the_newest_steps_stay(tmp_path):
    save(tmp_path, 3, 4, 5, keep=2)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["4", "5"]


def test_arrays_may_be_donated_while_they_are_being_saved(tmp_path):
    double = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    x = jnp.arange(2_000_000, dtype=jnp.float32)
    wanted = np.array(x)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": x}, {"count": jnp.int32(0)}, {})
            for _ in range(5):
                x = double(x)
            if step == 1:
                wanted_after = np.array(x)
    sharding = NamedSharding(make_mesh((1, 1, 1)), P())
    struct = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step, values in ((1, wanted), (2, wanted_after)):
            found, _ = checkpoints.restore(step, {"x": struct}, {"count": count})
            np.testing.assert_array_equal(found["x"], values)


def test_a_step_that_was_being_written_is_passed_over(copied):
    half = copied / "steps" / "3.orbax-checkpoint-tmp"
    shutil.copytree(copied / "steps" / "2", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    assert_equal(checkpoint.restore_params(copied, like()), tree(2))
    with Checkpoints(copied, keep=3) as checkpoints:
        assert checkpoints.latest() == 2
        checkpoints.save(3, tree(3), tree(3), {})
    assert not half.exists()
    assert_equal(checkpoint.restore_params(copied, like()), tree(3))


SAVE_FOREVER = """
import sys
import test_checkpoint
from invcoder_jax.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    first = (checkpoints.latest() or 0) + 1
    for step in range(first, first + 1000):
        checkpoints.save(step, test_checkpoint.tree(step), test_checkpoint.tree(step), {})
        print(step, flush=True)
"""


def test_a_killed_process_leaves_a_whole_last_step(tmp_path):
    checkpoint.describe(tmp_path, {}, byte_tokenizer())
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    for lines in (2, 5):
        process = subprocess.Popen(
            command, env=environment(PYTHONPATH=path), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        begun = [int(process.stdout.readline()) for _ in range(lines)][-1]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            latest = checkpoints.latest()
        assert latest is not None and latest >= begun - 1
        assert_equal(checkpoint.restore_params(tmp_path, like()), tree(latest))


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_truncated_array_file_is_an_error(copied, left):
    files = (copied / "steps" / "2" / "params").rglob("d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(UserError, match="step 2 is damaged.*delete .*steps/2"):
        checkpoint.restore_params(copied, like())


def test_another_models_weights_are_refused(saved):
    wanted = like()
    wanted["more"] = wanted["weight"]
    with pytest.raises(UserError, match="step 2 is damaged or of another model"):
        checkpoint.restore_params(saved, wanted)


def test_a_run_without_a_finished_step_is_no_model_yet(tmp_path):
    save(tmp_path)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        checkpoint.restore_params(tmp_path, like())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for call in (
        lambda: checkpoint.describe(tmp_path / "file" / "run", {}, byte_tokenizer()),
        lambda: Checkpoints(tmp_path / "file" / "run", keep=1),
    ):
        with pytest.raises(UserError, match="cannot be written.*free disk space or choose"):
            call()


@contextlib.contextmanager
def largest_file(size: int):
    """Writing more than `size` bytes to a file fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_spares_the_earlier_step(tmp_path):
    draw = np.random.default_rng(0)
    big = {"x": jnp.asarray(draw.normal(size=(300_000,)), jnp.float32)}
    save(tmp_path, 1)
    with pytest.raises(UserError, match="cannot be written.*free disk space"):
        with largest_file(100_000), Checkpoints(tmp_path, keep=3) as checkpoints:
            checkpoints.save(2, big, big, {})
    assert_equal(checkpoint.restore_params(tmp_path, like()), tree(1))


def test_saving_and_restoring_say_nothing(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    save(tmp_path, 1)
    checkpoint.restore_params(tmp_path, like())
    assert [r.getMessage() for r in caplog.records if r.name == "absl"] == []
    assert capfd.readouterr() == ("", "")


def test_a_step_that_the_disk_has_no_room_for_is_refused_before_it_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="has 0.0 MB free .* free some space and run again"):
        save(tmp_path, 1)
    assert list((tmp_path / "steps").iterdir()) == []
