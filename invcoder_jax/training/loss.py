"""Cross-entropy over response tokens, a chunk of positions at a time.

The logits of a whole batch, [B, T, V], never exist: a chunk's are made, used, and made again in
the backward pass. Usage: `total = response_loss(model, tokens_BxT, weights_BxT, remat=True)`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from invcoder_jax.model.decoder import Decoder

CHUNK = 64  # positions of each row whose logits exist at once


def response_loss(
    model: Decoder, tokens_BxT: jax.Array, weights_BxT: jax.Array, *, remat: bool
) -> jax.Array:
    """Sum over tokens of weight * -log p(token | tokens before it), float32.

    The first token's weight is not used. `remat` as in Decoder.__call__.
    """
    hidden_BxTxD = model(tokens_BxT, remat=remat)
    return cross_entropy_sum(
        model.logits, hidden_BxTxD[:, :-1], tokens_BxT[:, 1:], weights_BxT[:, 1:]
    )


def cross_entropy_sum(
    logits_of: Callable[[jax.Array], jax.Array],
    hidden_BxTxD: jax.Array,
    targets_BxT: jax.Array,
    weights_BxT: jax.Array,
) -> jax.Array:
    """Sum of weight * (logsumexp - target's logit); chunks without any weight are skipped.

    Each row is rolled so that it begins with its first weighted position: prompts differ in
    length, and skipping is worth more when their responses lie side by side.
    """
    first_B = jnp.argmax(weights_BxT > 0, axis=1)
    align = jax.vmap(partial(jnp.roll, axis=0))
    chunks = [_chunked(align(x, -first_B)) for x in (hidden_BxTxD, targets_BxT, weights_BxT)]

    @jax.checkpoint
    def add_chunk(total: jax.Array, chunk: list[jax.Array]) -> tuple[jax.Array, None]:
        used = jnp.any(chunk[2] > 0)
        return total + jax.lax.cond(used, chunk_sum, lambda *_: jnp.float32(0), *chunk), None

    def chunk_sum(hidden_BxCxD: jax.Array, targets_BxC: jax.Array, weights_BxC: jax.Array):
        return jnp.sum(weights_BxC * cross_entropy(logits_of(hidden_BxCxD), targets_BxC))

    return jax.lax.scan(add_chunk, jnp.float32(0), chunks)[0]


def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """-log softmax(logits)[target], float32; the vocabulary may be sharded (so no gather)."""
    logits_BxTxV = logits_BxTxV.astype(jnp.float32)
    chosen_BxTxV = jnp.arange(logits_BxTxV.shape[-1])[None, None] == targets_BxT[..., None]
    target_BxT = jnp.sum(jnp.where(chosen_BxTxV, logits_BxTxV, 0.0), axis=-1)
    return jax.nn.logsumexp(logits_BxTxV, axis=-1) - target_BxT


def _chunked(x_BxT: jax.Array) -> jax.Array:
    """[B, T, ...] as [T / CHUNK, B, CHUNK, ...], padded with zeros."""
    rows, length = x_BxT.shape[:2]
    missing = -length % CHUNK
    padded = jnp.pad(x_BxT, [(0, 0), (0, missing)] + [(0, 0)] * (x_BxT.ndim - 2))
    shape = (rows, (length + missing) // CHUNK, CHUNK, *x_BxT.shape[2:])
    return jnp.swapaxes(padded.reshape(shape), 0, 1)
