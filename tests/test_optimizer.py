"""training/optimizer.py against transformers and torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import get_scheduler
from transformers.optimization import Adafactor

from configs import tiny
from invcoder_jax.settings import from_config
from invcoder_jax.training.optimizer import adafactor, learning_rate

L = 3
SHAPES = {
    "embed": (11, 5),
    "blocks": {"wq": (L, 5, 13), "square": (L, 7, 7), "norm": (L, 5)},
    "final_norm": (5,),
}


def draw_tree(seed: int, spread: float) -> dict:
    """Normal leaves; layer l of a stack is scaled by spread ** l."""
    draw = np.random.default_rng(seed)

    def leaf(shape):
        return draw.normal(size=shape).astype(np.float32)

    def stack(shape):
        scale = spread ** np.arange(L, dtype=np.float32)
        return leaf(shape) * scale.reshape(L, *[1] * (len(shape) - 1))

    return {
        "embed": leaf(SHAPES["embed"]),
        "blocks": {name: stack(shape) for name, shape in SHAPES["blocks"].items()},
        "final_norm": leaf(SHAPES["final_norm"]),
    }


def single_matrices(tree: dict) -> list[np.ndarray]:
    """Each layer's leaf for itself, the way torch keeps them."""
    stacked = [leaf[layer] for _, leaf in sorted(tree["blocks"].items()) for layer in range(L)]
    return [np.asarray(x) for x in (tree["embed"], tree["final_norm"], *stacked)]


def test_adafactor_equals_transformers_a_layer_at_a_time():
    params = draw_tree(0, 1.0)
    theirs = [torch.nn.Parameter(torch.tensor(x)) for x in single_matrices(params)]
    reference = Adafactor(theirs, lr=1.0, scale_parameter=False, relative_step=False)
    optimizer = adafactor()
    ours, state = jax.tree.map(jnp.asarray, params), optimizer.init(params)
    for step in range(6):
        gradients = draw_tree(100 + step, 10.0 ** (step - 3))
        for parameter, gradient in zip(theirs, single_matrices(gradients), strict=True):
            parameter.grad = torch.tensor(gradient)
        reference.step()
        updates, state = jax.jit(optimizer.update)(gradients, state, ours)
        ours = jax.tree.map(lambda p, u: p - u, ours, updates)
    for one, other, start in zip(
        single_matrices(ours), theirs, single_matrices(params), strict=True
    ):
        moved = other.detach().numpy() - start
        assert np.linalg.norm(one - start - moved) <= 3e-6 * np.linalg.norm(moved)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (3, 10), (15, 12)])
def test_schedule_equals_transformers(schedule, warmup, total):
    settings = dataclasses.replace(
        from_config(tiny.get_config()).train,
        schedule=schedule, warmup_steps=warmup, learning_rate=5e-5,
    )  # fmt: skip
    name = "linear" if schedule == "linear" else "constant_with_warmup"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-5)
    reference = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    rate = learning_rate(settings, total)
    for step in range(total):
        np.testing.assert_allclose(rate(jnp.int32(step)), reference.get_last_lr()[0], rtol=1e-6)
        optimizer.step()
        reference.step()
