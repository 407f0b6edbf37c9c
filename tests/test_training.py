"""training/: one step on any mesh, and a run through stops and restarts."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import tiny
from invcoder_jax.errors import Preempted, UserError
from invcoder_jax.mesh import make_mesh, serve_layout, train_layout
from invcoder_jax.model.decoder import from_params, params_of
from invcoder_jax.model.sources import load_model
from invcoder_jax.records import Pair
from invcoder_jax.settings import from_config
from invcoder_jax.training.data import Encoded, batches, examples_of
from invcoder_jax.training.loop import train
from invcoder_jax.training.optimizer import adafactor, learning_rate
from invcoder_jax.training.step import TrainState, make_step

SETTINGS = dataclasses.replace(
    from_config(tiny.get_config()).train,
    batch=8,
    microbatch=4,
    max_length=48,
    length_buckets=(48,),
    checkpoint_every=2,
    keep_checkpoints=2,
)
PAIRS = [Pair.make("say" * (i % 4), f"def f{i}(): return {'x' * (i % 9)}") for i in range(20)]
STEPS = 5  # 20 pairs twice, 8 a step


def load(ref="random:tiny", shape=(1, 1, 1), layout=train_layout, compute_dtype="float32"):
    return load_model(
        ref,
        lambda spec: layout(make_mesh(shape), spec),
        param_dtype="float32",
        compute_dtype=compute_dtype,
    )


def encode(loaded) -> Encoded:
    return examples_of(PAIRS, loaded.tokenizer, SETTINGS.max_length, lambda text: text + "\n")


def run(folder, settings=SETTINGS, **kwargs):
    loaded = load()
    return train(loaded, encode(loaded), settings, epochs=2, seed=1, folder=folder, **kwargs)


def stop_at(step: int):
    """A progress callback that sends this process SIGTERM once `step` was read."""
    done = []

    def advance(count: int) -> None:
        done.append(count)
        if sum(done) == step:
            signal.raise_signal(signal.SIGTERM)

    return advance


def weights(folder) -> dict:
    loaded = load(str(folder / "checkpoint"), layout=serve_layout)
    return jax.tree.map(np.asarray, params_of(loaded.model))


def assert_same_bits(one: dict, other: dict) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.tobytes() == b.tobytes()


def three_steps(settings, **kwargs):
    """Losses, gradient norms and final weights of three steps."""
    loaded = load(**kwargs)
    layout = loaded.model.layout
    steps = batches(encode(loaded), settings, epochs=2, seed=1)
    optimizer = adafactor()
    step = make_step(loaded.model, optimizer, learning_rate(settings, STEPS), remat=True)
    found = []
    with layout.active():
        params = params_of(loaded.model)
        state = TrainState(params, jax.jit(optimizer.init)(params), layout.put(np.int32(0)))
        for number in range(3):
            tokens = layout.put(steps[number].tokens_AxMxT, None, "batch", "length")
            shares = layout.put(steps[number].weights_AxMxT, None, "batch", "length")
            state, metrics = step(state, tokens, shares)
            found += [float(metrics.loss), float(metrics.grad_norm)]
    return np.array(found), jax.tree.map(np.asarray, state.params)


@pytest.fixture(scope="module")
def accumulated():
    return three_steps(SETTINGS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "undisturbed"
    folder.mkdir()
    return folder, run(folder)


def assert_same_steps(found, wanted, rtol: float) -> None:
    np.testing.assert_allclose(found[0], wanted[0], rtol=rtol)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=rtol)


def test_accumulated_microbatches_equal_one_big_batch(accumulated):
    whole = dataclasses.replace(SETTINGS, microbatch=8)
    assert_same_steps(three_steps(whole), accumulated, 1e-5)


def test_a_2x2x2_mesh_gives_the_steps_of_one_device(accumulated, capfd):
    jax.config.update("jax_enable_compilation_cache", False)  # a cached program warns no more
    compilation_cache.reset_cache()
    try:
        sharded = three_steps(SETTINGS, shape=(2, 2, 2))
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    assert_same_steps(sharded, accumulated, 1e-5)
    assert "nvoluntary full rematerialization" not in capfd.readouterr().err


def test_bfloat16_compute_stays_near_float32(accumulated):
    found = three_steps(SETTINGS, compute_dtype="bfloat16")
    np.testing.assert_allclose(found[0], accumulated[0], rtol=2e-2)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found[1]))


def test_training_lowers_the_loss_and_says_what_it_did(undisturbed):
    folder, result = undisturbed
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss"] == result.final_loss < rows[0]["loss"]
    np.testing.assert_allclose(
        [row["learning_rate"] for row in rows], [0, 1e-3, 7.5e-4, 5e-4, 2.5e-4], rtol=1e-6
    )
    assert (result.steps, result.examples, result.cut, result.leftover) == (STEPS, 20, 0, 0)
    assert all(row["padded_tokens"] == 8 * 48 for row in rows)
    examples = encode(load()).examples
    responses = sum(len(e.tokens_T) - e.prompt_length for e in examples)
    assert sum(row["response_tokens"] for row in rows) == 2 * responses
    assert sum(row["tokens"] for row in rows) == 2 * sum(len(e.tokens_T) for e in examples)
    assert list((folder / "tensorboard").iterdir())
    assert len((folder / "timings.jsonl").read_text().splitlines()) == STEPS


@pytest.mark.parametrize("stops", [(1,), (2, 4), (3,)])
def test_a_stopped_and_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    undisturbed, tmp_path, stops
):
    for step in stops:
        with pytest.raises(Preempted, match="stopped at training step . of 5"):
            run(tmp_path, on_progress=stop_at(step))
    result = run(tmp_path)
    assert result == undisturbed[1]
    name = "metrics.jsonl"
    assert (tmp_path / name).read_bytes() == (undisturbed[0] / name).read_bytes()
    assert_same_bits(weights(tmp_path), weights(undisturbed[0]))


def test_metrics_past_the_last_checkpoint_are_forgotten_on_resume(undisturbed, tmp_path):
    with pytest.raises(Preempted):
        run(tmp_path, on_progress=stop_at(1))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step":4,"loss":-1}\n')
    run(tmp_path)
    assert path.read_bytes() == (undisturbed[0] / "metrics.jsonl").read_bytes()


def test_a_finished_run_returns_at_once(undisturbed):
    folder, result = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (folder / "checkpoint").rglob("steps/*/*")}
    seen = []
    assert run(folder, on_progress=seen.append) == result
    assert seen == [STEPS]
    assert before == {p: p.stat().st_mtime_ns for p in (folder / "checkpoint").rglob("steps/*/*")}


def test_a_run_does_not_go_on_in_the_folder_of_another(undisturbed):
    with pytest.raises(UserError, match="holds step 5 of a run with other data or settings"):
        run(undisturbed[0], dataclasses.replace(SETTINGS, learning_rate=2e-3))


def test_a_loss_that_is_not_finite_stops_with_step_and_examples(tmp_path):
    loaded = load()
    broken = jax.tree.map(lambda x: x * np.float32("nan"), params_of(loaded.model))
    model = from_params(loaded.spec, loaded.model.layout, broken, "float32")
    encoded = encode(loaded)
    rows = batches(encoded, SETTINGS, epochs=2, seed=1)[0].rows
    ids = ", ".join(encoded.examples[row].id for row in rows)
    with pytest.raises(UserError, match=f"step 1 .examples {ids}. must be finite; lower train"):
        train(
            dataclasses.replace(loaded, model=model),
            encoded,
            SETTINGS,
            epochs=2,
            seed=1,
            folder=tmp_path,
        )
    assert not list((tmp_path / "checkpoint" / "steps").iterdir())


def test_a_microbatch_that_does_not_divide_over_the_mesh_is_refused(tmp_path):
    loaded = load(shape=(2, 4, 1))
    with pytest.raises(UserError, match="microbatch 4 does not divide over 8.*multiple of 8"):
        train(loaded, encode(loaded), SETTINGS, epochs=2, seed=1, folder=tmp_path)
