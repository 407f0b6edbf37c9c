"""training/loss.py against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from invcoder_jax.mesh import make_mesh
from invcoder_jax.training.loss import cross_entropy_sum

B, T, D, V = 4, 150, 6, 22  # T is no multiple of the chunk


@pytest.fixture(scope="module")
def arrays():
    draw = np.random.default_rng(3)
    hidden_BxTxD = draw.normal(size=(B, T, D)).astype(np.float32)
    head_DxV = draw.normal(size=(D, V)).astype(np.float32) * 3
    targets_BxT = draw.integers(0, V, (B, T)).astype(np.int32)
    weights_BxT = np.zeros((B, T), np.float32)
    for row, (first, last) in enumerate([(0, 150), (20, 149), (100, 130), (149, 150)]):
        weights_BxT[row, first:last] = draw.uniform(0.1, 2, last - first)
    return hidden_BxTxD, head_DxV, targets_BxT, weights_BxT


def total(hidden_BxTxD, head_DxV, targets_BxT, weights_BxT):
    return cross_entropy_sum(
        lambda hidden: jnp.einsum("btd,dv->btv", hidden, head_DxV),
        hidden_BxTxD, targets_BxT, weights_BxT,
    )  # fmt: skip


def reference(hidden_BxTxD, head_DxV, targets_BxT, weights_BxT):
    """Loss and its gradients to hidden and head, in float64."""
    hidden, head = hidden_BxTxD.astype(np.float64), head_DxV.astype(np.float64)
    logits = hidden @ head
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.eye(V)[targets_BxT]
    loss = -(weights_BxT * np.log((p * chosen).sum(-1))).sum()
    slope = weights_BxT[..., None] * (p - chosen)
    return loss, slope @ head.T, np.einsum("btd,btv->dv", hidden, slope)


def test_loss_and_gradients_equal_numpy(arrays):
    loss, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(*arrays)
    for ours, theirs in zip((loss, *grads), reference(*arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_a_sharded_vocabulary_gives_the_same_loss_and_gradients(arrays):
    names = jax.P(("replica", "fsdp"))
    with jax.set_mesh(make_mesh((2, 2, 2))):
        specs = (names, jax.P(None, "model"), names, names)
        placed = [jax.device_put(x, spec) for x, spec in zip(arrays, specs, strict=True)]
        hidden, head, targets, weights = placed

        def sharded(hidden_BxTxD, head_DxV):
            return cross_entropy_sum(
                lambda h: jnp.einsum("btd,dv->btv", h, head_DxV), hidden_BxTxD, targets, weights
            )

        loss, grads = jax.jit(jax.value_and_grad(sharded, argnums=(0, 1)))(hidden, head)
    for ours, theirs in zip((loss, *grads), reference(*arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_tokens_without_weight_change_nothing(arrays):
    hidden, head, targets, weights = arrays
    other_targets = np.where(weights > 0, targets, (targets + 1) % V).astype(np.int32)
    other_hidden = np.where(weights[..., None] > 0, hidden, hidden + 1)
    ours = jax.jit(total)(hidden, head, targets, weights)
    assert ours == jax.jit(total)(other_hidden, head, other_targets, weights)
    changed = np.where(weights > 0, (targets + 1) % V, targets).astype(np.int32)
    assert ours != jax.jit(total)(hidden, head, changed, weights)


def test_no_response_at_all_is_a_loss_of_zero(arrays):
    hidden, head, targets, weights = arrays
    assert jax.jit(total)(hidden, head, targets, np.zeros_like(weights)) == 0


def test_the_logits_of_all_positions_never_exist_at_once(arrays):
    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                if V in variable.aval.shape:
                    yield variable.aval.size
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(*arrays)
    assert B * T * V / 3 < max(sizes(jaxpr.jaxpr)) < B * T * V / 2
