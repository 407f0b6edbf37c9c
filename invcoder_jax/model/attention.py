"""Attention and rotary positions. The reference kernel is the oracle of any other.

Usage: `out_BxTxNxH = attend(q_BxTxNxH, k_BxSxKxH, v_BxSxKxH, mask_BxTxS)`.
"""

import jax
import jax.numpy as jnp
from jax import P

KERNELS = ("reference",)


def attend(
    q_BxTxNxH: jax.Array,
    k_BxSxKxH: jax.Array,
    v_BxSxKxH: jax.Array,
    mask_BxTxS: jax.Array,
    *,
    kernel: str = "reference",
) -> jax.Array:
    """Grouped-query attention [B, T, N, H]; mask is True where a query may look."""
    if kernel == "reference":
        return _reference(q_BxTxNxH, k_BxSxKxH, v_BxSxKxH, mask_BxTxS)
    raise ValueError(f"attention kernel {kernel!r} is not one of {KERNELS}")


def _reference(
    q_BxTxNxH: jax.Array, k_BxSxKxH: jax.Array, v_BxSxKxH: jax.Array, mask_BxTxS: jax.Array
) -> jax.Array:
    """Softmax in float32. The queries of a kv head make one matrix, XLA:CPU's fastest form."""
    B, T, N, H = q_BxTxNxH.shape
    S, K = k_BxSxKxH.shape[1:3]
    G = N // K
    rows, _, heads, _ = place = jax.typeof(q_BxTxNxH).sharding.spec
    grouped, merged = P(rows, heads, None, None, None), P(rows, heads, None, None)

    q = jnp.reshape(q_BxTxNxH, (B, T, K, G, H), out_sharding=P(rows, None, heads, None, None))
    q_BxKxGTxH = jnp.reshape(q.transpose(0, 2, 3, 1, 4), (B, K, G * T, H), out_sharding=merged)
    scores = H**-0.5 * jnp.einsum(
        "bkth,bskh->bkts", q_BxKxGTxH, k_BxSxKxH, preferred_element_type=jnp.float32
    )
    scores_BxKxGxTxS = jnp.reshape(scores, (B, K, G, T, S), out_sharding=grouped)
    shares = _masked_softmax(scores_BxKxGxTxS, mask_BxTxS[:, None, None]).astype(v_BxSxKxH.dtype)
    shares_BxKxGTxS = jnp.reshape(shares, (B, K, G * T, S), out_sharding=merged)
    out_BxKxGTxH = jnp.einsum("bkts,bskh->bkth", shares_BxKxGTxS, v_BxSxKxH)
    out = jnp.reshape(out_BxKxGTxH, (B, K, G, T, H), out_sharding=grouped)
    return jnp.reshape(out.transpose(0, 3, 1, 2, 4), (B, T, N, H), out_sharding=place)


def attend_cached(
    q_BxNxH: jax.Array, k_BxKxHxS: jax.Array, v_BxKxSxH: jax.Array, positions_B: jax.Array
) -> jax.Array:
    """One query a row [B, N, H] over the slots up to its position; softmax in float32."""
    B, N, H = q_BxNxH.shape
    K, S = v_BxKxSxH.shape[1:3]
    place = jax.typeof(q_BxNxH).sharding.spec
    q_BxKxGxH = jnp.reshape(q_BxNxH, (B, K, N // K, H), out_sharding=P(*place[:2], None, None))
    scores_BxKxGxS = H**-0.5 * jnp.einsum(
        "bkgh,bkhs->bkgs", q_BxKxGxH, k_BxKxHxS, preferred_element_type=jnp.float32
    )
    seen_Bx1x1xS = jnp.arange(S)[None, None, None] <= positions_B[:, None, None, None]
    shares_BxKxGxS = _masked_softmax(scores_BxKxGxS, seen_Bx1x1xS).astype(v_BxKxSxH.dtype)
    out_BxKxGxH = jnp.einsum("bkgs,bksh->bkgh", shares_BxKxGxS, v_BxKxSxH)
    return jnp.reshape(out_BxKxGxH, (B, N, H), out_sharding=place)


def rotary_angles(
    positions_BxT: jax.Array, head_dim: int, theta: float, linear_factor: float
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, H/2] in float32; linear scaling divides positions by its factor."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = 1.0 / (theta**exponents) / linear_factor
    angles = positions_BxT.astype(jnp.float32)[..., None] * frequencies[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxTxNxH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding; like HF it rotates halves, not neighbouring pairs."""
    cos, sin = (a[:, :, None] for a in angles)
    first, second = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxNxH.dtype)


def _masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Over the last dim where the mask is True; without NaN where it is nowhere True."""
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
