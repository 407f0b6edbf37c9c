"""The keys and values that decoding has seen: plain arrays, an argument and a result.

Slot index equals position: rows start at slot 0 and are padded on the right. A row's slots after
its position may hold anything, because a query looks at slots up to its own position only.
One array a layer, so that a step writes in place: XLA:CPU copies a stacked cache (3 times slower).
Keys have their slots last, because that order multiplies fastest there (10 times).
Usage: `cache = insert(empty_cache(spec, layout, rows, slots, dtype), prefilled, rows_R)`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import P

from invcoder_jax.mesh import Layout
from invcoder_jax.model.spec import ModelSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefilled:
    """Keys (already rotated) and values of whole prompts, as prefill makes them."""

    k_LxBxSxKxH: jax.Array
    v_LxBxSxKxH: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys (already rotated) and values of every layer (tuples), row and slot."""

    k_LxBxKxHxS: tuple[jax.Array, ...]
    v_LxBxKxSxH: tuple[jax.Array, ...]

    @property
    def slots(self) -> int:
        """How many positions a row can hold."""
        return self.k_LxBxKxHxS[0].shape[3]


def empty_cache(
    spec: ModelSpec, layout: Layout, rows: int, slots: int, dtype: jax.typing.DTypeLike
) -> KVCache:
    """Zeros for `rows` rows of `slots` positions; works inside and outside jit."""
    place = layout.sharding("batch", "kv_heads")

    def zeros(*shape: int) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, dtype, out_sharding=place) for _ in range(spec.layers))

    return KVCache(
        zeros(rows, spec.kv_heads, spec.head_dim, slots),
        zeros(rows, spec.kv_heads, slots, spec.head_dim),
    )


def insert(cache: KVCache, prefilled: Prefilled, rows_R: jax.Array) -> KVCache:
    """Row i of `prefilled` (at most cache.slots long) replaces the first slots of row rows_R[i].

    An index outside [0, rows) drops its row, so a partly filled prefill can be padded.
    """
    length = prefilled.k_LxBxSxKxH.shape[2]

    def put(to: jax.Array, kept: tuple[slice, ...], new: jax.Array) -> jax.Array:
        place = jax.typeof(to).sharding.spec
        new = jax.reshard(new, P(None, *place[1:]))
        return to.at[rows_R, *kept].set(
            new, mode="drop", wrap_negative_indices=False, out_sharding=place
        )

    every, first = slice(None), slice(length)
    k = [
        put(to, (every, every, first), new_RxTxKxH.transpose(0, 2, 3, 1))
        for to, new_RxTxKxH in zip(cache.k_LxBxKxHxS, prefilled.k_LxBxSxKxH, strict=True)
    ]
    v = [
        put(to, (every, first), new_RxTxKxH.transpose(0, 2, 1, 3))
        for to, new_RxTxKxH in zip(cache.v_LxBxKxSxH, prefilled.v_LxBxSxKxH, strict=True)
    ]
    return KVCache(tuple(k), tuple(v))


def write_keys(k_BxKxHxS: jax.Array, new_BxKxH: jax.Array, positions_B: jax.Array) -> jax.Array:
    """Each row's new keys at its own slot, one layer."""

    def write(k_KxHxS: jax.Array, new_KxH: jax.Array, position: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(k_KxHxS, new_KxH[:, :, None], (0, 0, position))

    return jax.vmap(write)(k_BxKxHxS, new_BxKxH, positions_B)


def write_values(v_BxKxSxH: jax.Array, new_BxKxH: jax.Array, positions_B: jax.Array) -> jax.Array:
    """Each row's new values at its own slot, one layer."""

    def write(v_KxSxH: jax.Array, new_KxH: jax.Array, position: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(v_KxSxH, new_KxH[:, None], (0, position, 0))

    return jax.vmap(write)(v_BxKxSxH, new_BxKxH, positions_B)
