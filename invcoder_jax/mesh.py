"""Devices: the mesh, and which logical dim of an array lies on which of its axes.

Model code says logical names ("batch", "heads"); mesh axes are named in this file only.
Usage: `layout = train_layout(make_mesh((1, -1, 1)), spec)`; `with layout.active(): step(...)`.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax import P
from jax.sharding import AxisType, Mesh, NamedSharding

from invcoder_jax.artifacts import cache_folder
from invcoder_jax.errors import UserError

log = logging.getLogger(__name__)

AXES = ("replica", "fsdp", "model")

Axes = str | tuple[str, ...] | None

# "embed" is the embed dim of a weight matrix and "vocab_rows" the vocab dim of the embedding and
# head at rest; activations say "act_embed" and "vocab", because their batch is on fsdp already.
TRAIN_RULES: Mapping[str, Axes] = {
    "batch": ("replica", "fsdp"),
    "length": None,
    "act_embed": None,
    "embed": "fsdp",
    "mlp": "model",
    "heads": "model",
    "kv_heads": "model",
    "head_dim": None,
    "vocab": "model",
    "vocab_rows": ("fsdp", "model"),
    "layers": None,
}
SERVE_RULES: Mapping[str, Axes] = {**TRAIN_RULES, "embed": None, "vocab_rows": "model"}


class Dims(Protocol):
    """The sizes that a layout must divide (a ModelSpec has them)."""

    @property
    def vocab(self) -> int: ...
    @property
    def embed(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def mlp(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and where each logical dim lies on it; hashable, so a module keeps it as static."""

    mesh: Mesh
    rules: tuple[tuple[str, Axes], ...]

    def spec(self, *names: str | None) -> P:
        """The PartitionSpec of an array whose dims have these logical names (None: replicated)."""
        table = dict(self.rules)
        return P(*(None if name is None else table[name] for name in names))

    def sharding(self, *names: str | None) -> NamedSharding:
        """`spec` on this mesh."""
        return NamedSharding(self.mesh, self.spec(*names))

    def put(self, array: jax.typing.ArrayLike, *names: str | None) -> jax.Array:
        """A host or device array placed by its dims' names; missing trailing names: replicated."""
        return jax.device_put(array, self.sharding(*names))

    @property
    def batch_shards(self) -> int:
        """A batch must be a multiple of this."""
        return _size(self.mesh, dict(self.rules)["batch"])

    def active(self) -> contextlib.AbstractContextManager[object]:
        """The context in which arrays of this layout are made and jitted functions called."""
        return jax.set_mesh(self.mesh)


def make_mesh(shape: Sequence[int], devices: Sequence[Any] | None = None) -> Mesh:
    """A (replica, fsdp, model) mesh with Explicit axes; one size may be -1 (all that remain).

    Fewer devices than there are may be used, the first ones; UserError when there are too few.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = list(shape)
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
        raise UserError(f"mesh {tuple(shape)} is no mesh; give three sizes {AXES}, at most one -1")
    if -1 in sizes:
        known = math.prod(n for n in sizes if n != -1)
        if len(devices) % known:
            raise UserError(
                f"mesh {tuple(shape)} does not divide {len(devices)} devices; "
                f"set sizes whose product divides {len(devices)}"
            )
        sizes[sizes.index(-1)] = len(devices) // known
    count = math.prod(sizes)
    if count > len(devices):
        raise UserError(
            f"mesh {tuple(shape)} needs {count} devices and there are {len(devices)}; "
            f"set sizes whose product is {len(devices)}"
        )
    if count < len(devices):
        log.warning("mesh=%s devices_used=%d devices=%d", tuple(sizes), count, len(devices))
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices[:count]
    )


def train_layout(mesh: Mesh, spec: Dims) -> Layout:
    """Weights over fsdp and model, rows over replica and fsdp."""
    return _fit(mesh, tuple(TRAIN_RULES.items()), _sizes(spec))


def serve_layout(mesh: Mesh, spec: Dims) -> Layout:
    """Weights over model only, rows over replica and fsdp."""
    return _fit(mesh, tuple(SERVE_RULES.items()), _sizes(spec))


def enable_compilation_cache() -> None:
    """XLA programs that took over half a second to compile are kept on disk between processes."""
    folder = cache_folder() / "xla"
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _sizes(spec: Dims) -> tuple[tuple[str, int], ...]:
    names = ("embed", "mlp", "heads", "kv_heads", "vocab")
    return (*((name, getattr(spec, name)) for name in names), ("vocab_rows", spec.vocab))


def _size(mesh: Mesh, axes: Axes) -> int:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


@functools.cache  # so that what is replicated is logged once a mesh and model
def _fit(
    mesh: Mesh, rules: tuple[tuple[str, Axes], ...], sizes: tuple[tuple[str, int], ...]
) -> Layout:
    table = dict(rules)
    for name, size in sizes:
        shards = _size(mesh, table[name])
        if size % shards:
            log.info("dim=%s size=%d axes=%s shards=%d replicated", name, size, table[name], shards)
            table[name] = None
    # A query head must lie where its kv head does.
    if table["heads"] is None or table["kv_heads"] is None:
        table["heads"] = table["kv_heads"] = None
    return Layout(mesh, tuple(table.items()))
