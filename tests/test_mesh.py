"""The mesh and the tables from logical names to its axes."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from jax import P

from invcoder_jax.errors import UserError
from invcoder_jax.mesh import AXES, make_mesh, serve_layout, train_layout
from invcoder_jax.model.decoder import param_shapes
from invcoder_jax.model.sources import TINY


def test_minus_one_takes_the_devices_that_remain():
    mesh = make_mesh((1, -1, 2))
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "model": 2}
    assert all(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


@pytest.mark.parametrize(
    "shape", [(1, 2), (-1, -1, 1), (0, 1, 1), (1, -1, 3), (4, 4, 1), (1, -2, 1)]
)
def test_sizes_that_do_not_fit_are_a_user_error(shape):
    with pytest.raises(UserError, match="set sizes|give three"):
        make_mesh(shape)


def test_fewer_devices_than_there_are_may_be_used(caplog):
    with caplog.at_level(logging.WARNING):
        mesh = make_mesh((1, 2, 1))
    assert mesh.devices.size == 2
    assert "devices_used=2 devices=8" in caplog.text


def test_training_spreads_weights_over_fsdp_and_serving_does_not():
    mesh = make_mesh((2, 2, 2))
    assert train_layout(mesh, TINY).spec("embed", "mlp") == P("fsdp", "model")
    assert serve_layout(mesh, TINY).spec("embed", "mlp") == P(None, "model")
    for layout in (train_layout(mesh, TINY), serve_layout(mesh, TINY)):
        assert layout.spec("batch", "length", "act_embed") == P(("replica", "fsdp"), None, None)
        assert layout.batch_shards == 4


@pytest.mark.parametrize("layout_of", [train_layout, serve_layout])
def test_no_parameter_uses_an_axis_twice_and_the_embedding_is_sharded_on_one_dim(layout_of):
    layout = layout_of(make_mesh((2, 2, 2)), TINY)
    for shape in jax.tree.leaves(param_shapes(TINY)):
        spec = layout.spec(*shape.names)
        axes = [axis for part in spec if part for axis in np.atleast_1d(part)]
        assert len(axes) == len(set(axes)) and set(axes) <= set(AXES)
    embed = layout.spec(*param_shapes(TINY)["embed"].names)
    assert sum(part is not None for part in embed) == 1


def test_query_and_kv_heads_are_replicated_together_when_either_does_not_divide():
    mesh = make_mesh((1, 2, 4))
    layout = train_layout(mesh, TINY)  # 4 heads divide over 4, 2 kv heads do not
    assert layout.spec("heads", "kv_heads", "mlp") == P(None, None, "model")


def test_a_replicated_dim_is_logged_once(caplog):
    mesh, spec = make_mesh((1, 1, 4)), dataclasses.replace(TINY, mlp=57)
    with caplog.at_level(logging.INFO):
        serve_layout(mesh, spec)
        serve_layout(mesh, spec)
    assert caplog.text.count("dim=mlp size=57 axes=model shards=4 replicated") == 1


def test_a_layout_is_hashable_and_places_host_arrays():
    layout = serve_layout(make_mesh((2, 2, 2)), TINY)
    assert hash(layout) == hash(serve_layout(make_mesh((2, 2, 2)), TINY))
    placed = layout.put(np.zeros((8, 3), np.float32), "batch", "length")
    assert placed.sharding == layout.sharding("batch", "length")
