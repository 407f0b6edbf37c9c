"""Adafactor as the paper used it, and its learning-rate schedule.

The constants are those of Hugging Face's `--optim adafactor` (scale_parameter False,
relative_step False). Usage: `optimizer = adafactor(); state = optimizer.init(params)`.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from invcoder_jax.settings import TrainSettings

CLIP_THRESHOLD = 1.0  # of an update's root mean square, a layer's matrix at a time
DECAY_EXPONENT = 0.8  # second moments decay by 1 - step ** -0.8
EPSILON = 1e-30  # added to squared gradients


def adafactor() -> optax.GradientTransformation:
    """Updates of unit scale, to be multiplied by the learning rate and subtracted.

    Factored for every matrix, whatever its size. "blocks" is a stack of layers: each layer is
    updated for itself (vmap), else statistics and clipping would run over the whole stack.
    """
    matrix = optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=DECAY_EXPONENT, min_dim_size_to_factor=1, epsilon=EPSILON
        ),
        optax.clip_by_block_rms(CLIP_THRESHOLD),
    )

    def init(params: Any) -> Any:
        blocks, rest = _split(params)
        return {"blocks": jax.vmap(matrix.init)(blocks), "rest": matrix.init(rest)}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        (grad_blocks, grad_rest), (blocks, rest) = _split(updates), _split(params)
        block_updates, block_state = jax.vmap(matrix.update)(grad_blocks, state["blocks"], blocks)
        rest_updates, rest_state = matrix.update(grad_rest, state["rest"], rest)
        merged = {"blocks": block_updates, **cast(dict, rest_updates)}
        return merged, {"blocks": block_state, "rest": rest_state}

    return optax.GradientTransformation(init, update)


def learning_rate(settings: TrainSettings, total: int) -> Callable[[jax.Array], jax.Array]:
    """The rate at an optimizer step counted from 0, as Hugging Face's schedules give it.

    Linear: up from 0 over warmup_steps, then down to 0 at `total`. Constant: no way down.
    """
    warmup = settings.warmup_steps

    def rate(step: jax.Array) -> jax.Array:
        up = step / max(warmup, 1)
        down = (total - step) / max(total - warmup, 1) if settings.schedule == "linear" else 1.0
        return settings.learning_rate * jnp.where(step < warmup, up, down).astype(jnp.float32)

    return rate


def _split(params: Any) -> tuple[Any, Any]:
    """The stacked layers, and the rest."""
    return params["blocks"], {name: leaf for name, leaf in params.items() if name != "blocks"}
