"""The decoder: one Flax module for every family that `spec.py` describes.

It owns the parameters' shapes and the forward passes (full, prefill, one decode step); sampling,
losses and where weights come from live elsewhere. No method mutates the module; each runs inside
`jax.jit` while its layout is active.
Usage: `with layout.active(): hidden, cache = jax.jit(Decoder.prefill)(model, tokens_BxT)`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from invcoder_jax.mesh import Layout
from invcoder_jax.model.attention import attend, attend_cached, rotary_angles, rotate
from invcoder_jax.model.cache import KVCache, Prefilled, write_keys, write_values
from invcoder_jax.model.spec import ModelSpec

Params = dict[str, Any]  # nested, array leaves: {"embed": ..., "blocks": {"wq": ...}, ...}
ACT = ("batch", "length", "act_embed")


@dataclasses.dataclass(frozen=True)
class ParamShape:
    """A parameter's shape, the logical names of its dims, and its init (None: ones)."""

    shape: tuple[int, ...]
    names: tuple[str | None, ...]
    init_std: float | None = 0.02


def param_shapes(spec: ModelSpec) -> Params:
    """Every parameter of a decoder as ParamShape leaves; blocks are stacked over layers."""
    L, D, F, V = spec.layers, spec.embed, spec.mlp, spec.vocab
    q_out, kv_out = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    norm = ParamShape((L, D), ("layers", None), None)
    shapes: Params = {
        "embed": ParamShape((V, D), ("vocab_rows", None)),
        "blocks": {
            "attention_norm": norm,
            "wq": ParamShape((L, D, q_out), ("layers", "embed", "heads")),
            "wk": ParamShape((L, D, kv_out), ("layers", "embed", "kv_heads")),
            "wv": ParamShape((L, D, kv_out), ("layers", "embed", "kv_heads")),
            "wo": ParamShape((L, q_out, D), ("layers", "heads", "embed")),
            "mlp_norm": norm,
            "gate": ParamShape((L, D, F), ("layers", "embed", "mlp")),
            "up": ParamShape((L, D, F), ("layers", "embed", "mlp")),
            "down": ParamShape((L, F, D), ("layers", "mlp", "embed")),
        },
        "final_norm": ParamShape((D,), (None,), None),
    }
    if not spec.tied:
        shapes["head"] = ParamShape((D, V), (None, "vocab_rows"))
    return shapes


def abstract_params(spec: ModelSpec, layout: Layout, param_dtype: jax.typing.DTypeLike) -> Params:
    """param_shapes as jax.ShapeDtypeStruct leaves with their shardings."""

    def struct(p: ParamShape) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(p.shape, param_dtype, sharding=layout.sharding(*p.names))

    return jax.tree.map(struct, param_shapes(spec))


def random_params(
    spec: ModelSpec, layout: Layout, key: jax.Array, param_dtype: jax.typing.DTypeLike
) -> Params:
    """Normal weights of deviation 0.02 (HF's initializer_range) and unit norms, on the mesh."""
    shapes, tree = jax.tree.flatten(param_shapes(spec))

    def make(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(shapes))
        leaves = [
            jnp.ones(p.shape, param_dtype, out_sharding=layout.sharding(*p.names))
            if p.init_std is None
            else jax.random.normal(
                keys[i], p.shape, jnp.float32, out_sharding=layout.sharding(*p.names)
            ).astype(param_dtype)
            * jnp.asarray(p.init_std, param_dtype)
            for i, p in enumerate(shapes)
        ]
        return jax.tree.unflatten(tree, leaves)

    with layout.active():
        return jax.jit(make)(key)


class Blocks(nnx.Module):
    """The weights of all layers, stacked: scanning over a Blocks gives one layer's Blocks."""

    def __init__(self, params: Mapping[str, jax.Array]) -> None:
        self.attention_norm = nnx.Param(params["attention_norm"])
        self.wq = nnx.Param(params["wq"])
        self.wk = nnx.Param(params["wk"])
        self.wv = nnx.Param(params["wv"])
        self.wo = nnx.Param(params["wo"])
        self.mlp_norm = nnx.Param(params["mlp_norm"])
        self.gate = nnx.Param(params["gate"])
        self.up = nnx.Param(params["up"])
        self.down = nnx.Param(params["down"])


class Decoder(nnx.Module):
    """A causal language model; weights random from `rngs`, or `params` as they are."""

    def __init__(
        self,
        spec: ModelSpec,
        layout: Layout,
        *,
        rngs: nnx.Rngs | None = None,
        params: Params | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        compute_dtype: jax.typing.DTypeLike = jnp.float32,
    ) -> None:
        if params is None:
            key = (nnx.Rngs(0) if rngs is None else rngs).params()
            params = random_params(spec, layout, key, param_dtype)
        self.spec = spec
        self.layout = layout
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.embed = nnx.Param(params["embed"])
        self.blocks = Blocks(params["blocks"])
        self.final_norm = nnx.Param(params["final_norm"])
        self.head = None if spec.tied else nnx.Param(params["head"])

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array | None = None,
        segments_BxT: jax.Array | None = None,
        *,
        remat: bool = False,
    ) -> jax.Array:
        """Hidden states [B, T, D] after the final norm; each token sees its segment's past.

        Positions default to 0..T-1. Rows padded on the right need no mask for their real tokens.
        Segments number the texts packed into a row, 0 is padding. `remat` recomputes each block
        in the backward pass.
        """
        hidden_BxTxD, _ = self._forward(tokens_BxT, positions_BxT, segments_BxT, remat, False)
        return hidden_BxTxD

    def prefill(self, tokens_BxT: jax.Array) -> tuple[jax.Array, Prefilled]:
        """Hidden states [B, T, D] and the keys and values of rows that start at position 0."""
        hidden_BxTxD, (k, v) = self._forward(tokens_BxT, None, None, False, True)
        return hidden_BxTxD, Prefilled(k, v)

    def decode(
        self,
        tokens_B: jax.Array,
        positions_B: jax.Array,
        cache: KVCache,
        layers: tuple[Blocks, ...] | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """One token a row: writes its keys and values at its position, sees slots up to it.

        Hidden states [B, D] after the final norm, and the new cache. In a loop over steps give
        `layers` = self.loop_layers(), taken before the loop.
        """
        positions_B = jax.reshard(positions_B, self.layout.spec("batch"))
        angles = self._angles(positions_B[:, None])
        x_Bx1xD = self._embed(tokens_B[:, None])
        keys, values = [], []
        for i, block in enumerate(self._layers() if layers is None else layers):
            q, k, v = self._project(block, x_Bx1xD, angles)
            keys.append(write_keys(cache.k_LxBxKxHxS[i], k[:, 0], positions_B))
            values.append(write_values(cache.v_LxBxKxSxH[i], v[:, 0], positions_B))
            attended_BxNxH = attend_cached(q[:, 0], keys[i], values[i], positions_B)
            x_Bx1xD = self._finish(block, x_Bx1xD, attended_BxNxH[:, None])
        hidden_BxD = self._norm(x_Bx1xD[:, 0], self.final_norm[...])
        return hidden_BxD, KVCache(tuple(keys), tuple(values))

    def loop_layers(self) -> tuple[Blocks, ...] | None:
        """What `decode` takes as `layers` in a loop: XLA:CPU copies slices of stacked weights.

        None on other devices, which read a slice in place.
        """
        on_cpu = self.layout.mesh.devices.flat[0].platform == "cpu"
        return self._layers() if on_cpu else None

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D] (first dim: batch)."""
        if self.head is None:
            weight, equation = self._weight(self.embed, "vocab", None), "...d,vd->...v"
        else:
            weight, equation = self._weight(self.head, None, "vocab"), "...d,dv->...v"
        names = ("batch", *(None,) * (hidden.ndim - 2), "vocab")
        return jnp.einsum(
            equation,
            hidden,
            weight,
            preferred_element_type=jnp.float32,
            out_sharding=self.layout.sharding(*names),
        )

    def logits_at(self, hidden: jax.Array, token_ids: tuple[int, ...]) -> jax.Array:
        """Float32 logits [..., len(token_ids)] of these tokens only."""
        ids = jnp.asarray(token_ids)
        if self.head is None:
            table = self._weight(self.embed, "vocab", None)
            columns = table.at[ids].get(out_sharding=self.layout.sharding(None, None))
        else:
            table = self._weight(self.head, None, "vocab")
            columns = table.at[:, ids].get(out_sharding=self.layout.sharding(None, None)).T
        return jnp.einsum("...d,vd->...v", hidden, columns, preferred_element_type=jnp.float32)

    def _forward(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array | None,
        segments_BxT: jax.Array | None,
        remat: bool,
        keep_cache: bool,
    ) -> tuple[jax.Array, Any]:
        length = tokens_BxT.shape[1]
        steps_T = jnp.arange(length)
        mask_BxTxS = (steps_T[:, None] >= steps_T[None, :])[None]
        if segments_BxT is not None:
            same_BxTxS = segments_BxT[:, :, None] == segments_BxT[:, None, :]
            mask_BxTxS = mask_BxTxS & jax.reshard(same_BxTxS, self.layout.spec("batch"))
        if positions_BxT is None:
            angles = self._angles(steps_T[None])
        else:
            angles = self._angles(jax.reshard(positions_BxT, self.layout.spec("batch")))

        def block_step(x_BxTxD: jax.Array, block: Blocks) -> tuple[jax.Array, Any]:
            q, k, v = self._project(block, x_BxTxD, angles)
            x_BxTxD = self._finish(block, x_BxTxD, attend(q, k, v, mask_BxTxS))
            return x_BxTxD, ((k, v) if keep_cache else None)

        body = jax.checkpoint(block_step) if remat else block_step
        x_BxTxD, kept = jax.lax.scan(body, self._embed(tokens_BxT), self.blocks)
        return self._norm(x_BxTxD, self.final_norm[...]), kept

    def _layers(self) -> tuple[Blocks, ...]:
        def layer(index: int) -> Blocks:
            return jax.tree.map(lambda stacked: stacked[index], self.blocks)

        return tuple(layer(index) for index in range(self.spec.layers))

    def _embed(self, tokens_BxT: jax.Array) -> jax.Array:
        table_VxD = self._weight(self.embed, "vocab", None)
        tokens_BxT = jax.reshard(tokens_BxT, self.layout.spec("batch", "length"))
        return table_VxD.at[tokens_BxT].get(out_sharding=self.layout.sharding(*ACT))

    def _project(
        self, block: Blocks, x_BxTxD: jax.Array, angles: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries [B, T, N, H] and keys, and values [B, T, K, H], of one layer."""
        y_BxTxD = self._norm(x_BxTxD, block.attention_norm[...])
        q = self._heads(y_BxTxD, block.wq, "heads", self.spec.heads)
        k = self._heads(y_BxTxD, block.wk, "kv_heads", self.spec.kv_heads)
        v = self._heads(y_BxTxD, block.wv, "kv_heads", self.spec.kv_heads)
        return rotate(q, angles), rotate(k, angles), v

    def _heads(self, y_BxTxD: jax.Array, weight: nnx.Param, name: str, heads: int) -> jax.Array:
        flat = self._matmul(y_BxTxD, self._weight(weight, None, name), "batch", "length", name)
        shape = (*y_BxTxD.shape[:2], heads, self.spec.head_dim)
        names = ("batch", "length", name, "head_dim")
        return jnp.reshape(flat, shape, out_sharding=self.layout.sharding(*names))

    def _finish(self, block: Blocks, x_BxTxD: jax.Array, attended_BxTxNxH: jax.Array) -> jax.Array:
        """A layer after attention: output projection, then the gated MLP, both residual."""
        flat = jnp.reshape(
            attended_BxTxNxH,
            (*x_BxTxD.shape[:2], self.spec.heads * self.spec.head_dim),
            out_sharding=self.layout.sharding("batch", "length", "heads"),
        )
        x_BxTxD = x_BxTxD + self._matmul(flat, self._weight(block.wo, "heads", None), *ACT)
        y_BxTxD = self._norm(x_BxTxD, block.mlp_norm[...])
        inner = ("batch", "length", "mlp")
        gate_BxTxF = self._matmul(y_BxTxD, self._weight(block.gate, None, "mlp"), *inner)
        up_BxTxF = self._matmul(y_BxTxD, self._weight(block.up, None, "mlp"), *inner)
        mixed_BxTxF = jax.nn.silu(gate_BxTxF) * up_BxTxF
        return x_BxTxD + self._matmul(mixed_BxTxF, self._weight(block.down, "mlp", None), *ACT)

    def _weight(self, weight: nnx.Param, *names: str | None) -> jax.Array:
        """A weight as it is used: in the compute dtype, gathered over all but the named dims."""
        return jax.reshard(weight[...].astype(self.compute_dtype), self.layout.spec(*names))

    def _matmul(self, x: jax.Array, weight: jax.Array, *names: str | None) -> jax.Array:
        return jnp.einsum("btd,df->btf", x, weight, out_sharding=self.layout.sharding(*names))

    def _angles(self, positions_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        spec = self.spec
        return rotary_angles(positions_BxT, spec.head_dim, spec.rope_theta, spec.rope_linear_factor)

    def _norm(self, x: jax.Array, scale_D: jax.Array) -> jax.Array:
        """RMSNorm in float32, back in the compute dtype."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.spec.norm_eps)
        scale = jnp.expand_dims(scale_D.astype(jnp.float32), tuple(range(x.ndim - 1)))
        return (x32 * scale).astype(self.compute_dtype)


def from_params(
    spec: ModelSpec, layout: Layout, params: Params, compute_dtype: jax.typing.DTypeLike
) -> Decoder:
    """A decoder around weights that lie on the mesh already."""
    return Decoder(spec, layout, params=params, compute_dtype=compute_dtype)


def params_of(model: Decoder) -> Params:
    """The weights as a nested dict of arrays, what checkpoints hold and optimizers see."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
