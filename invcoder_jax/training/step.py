"""One training step as one device program: accumulate, normalise, update.

Usage: `state, metrics = make_step(model, optimizer, rate, remat=True)(state, tokens, weights)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invcoder_jax.errors import UserError
from invcoder_jax.mesh import Layout
from invcoder_jax.model.decoder import Decoder, from_params
from invcoder_jax.training.loss import response_loss


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes: `step` counts the optimizer steps taken."""

    params: Any
    opt_state: Any
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Of one step: mean loss a response token (nats), the rate used, the gradient's norm."""

    loss: jax.Array
    response_tokens: jax.Array
    learning_rate: jax.Array
    grad_norm: jax.Array


Step = Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]


def make_step(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    *,
    remat: bool,
) -> Step:
    """A jitted step(state, tokens_AxMxT, weights_AxMxT); `state` is donated.

    Of `model` only the spec, layout and compute dtype count. The loss is the sum over response
    tokens of all A microbatches divided by their number; gradients are summed in float32.
    """
    spec, layout, dtype = model.spec, model.layout, model.compute_dtype

    def step(
        state: TrainState, tokens_AxMxT: jax.Array, weights_AxMxT: jax.Array
    ) -> tuple[TrainState, Metrics]:
        response_tokens = jnp.sum(weights_AxMxT)
        share_AxMxT = weights_AxMxT / jnp.maximum(response_tokens, 1.0)

        def loss_of(params: Any, tokens_MxT: jax.Array, share_MxT: jax.Array) -> jax.Array:
            decoder = from_params(spec, layout, params, dtype)
            return response_loss(decoder, tokens_MxT, share_MxT, remat=remat)

        def accumulate(sums: Any, microbatch: Any) -> tuple[Any, None]:
            found = jax.value_and_grad(loss_of)(state.params, *microbatch)
            return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), sums, found), None

        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), state.params)
        start = (jnp.float32(0), zeros)
        (loss, gradients), _ = jax.lax.scan(accumulate, start, (tokens_AxMxT, share_AxMxT))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        now = rate(state.step)
        params = jax.tree.map(
            lambda p, u: (p.astype(jnp.float32) - now * u).astype(p.dtype), state.params, updates
        )
        metrics = Metrics(loss, response_tokens, now, optax.tree.norm(gradients))
        return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def require_whole_shards(microbatch: int, layout: Layout) -> None:
    """UserError unless each device group gets the same number of a microbatch's rows."""
    shards = layout.batch_shards
    if microbatch % shards:
        raise UserError(
            f"train.microbatch {microbatch} does not divide over {shards} batch shards of the "
            f"mesh {dict(layout.mesh.shape)}; set train.microbatch to a multiple of {shards}"
        )
