"""What a stage is given beside its settings, and the models that stages load.

Usage: `rows = inputs.folder("preprocess").read_part(0, parts, Snippet)`.
"""

import dataclasses
from collections.abc import Mapping

from invcoder_jax.artifacts import StageFolder
from invcoder_jax.errors import UserError
from invcoder_jax.mesh import Layout, make_mesh, serve_layout, train_layout
from invcoder_jax.model.sources import LoadedModel, load_model
from invcoder_jax.model.spec import ModelSpec
from invcoder_jax.settings import Settings

Counts = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The folders of the stages before this one, and the models by role.

    `models` maps base, teacher, self and inversecoder to model REFs.
    """

    folders: Mapping[str, StageFolder]
    models: Mapping[str, str]

    def folder(self, stage: str) -> StageFolder:
        """The folder of an earlier stage, which must be finished."""
        folder = self.folders[stage]
        if not folder.done:
            raise UserError(
                f"stage {stage} is not finished in {folder.path}; "
                f"run `invcoder stage {stage}` first"
            )
        return folder


def load_for_serving(ref: str, settings: Settings) -> LoadedModel:
    """A model laid out for generation and scoring, weights in the compute dtype."""

    def layout(spec: ModelSpec) -> Layout:
        return serve_layout(make_mesh(settings.mesh.serve), spec)

    dtype = settings.model.compute_dtype
    return load_model(ref, layout, param_dtype=dtype, compute_dtype=dtype)


def load_for_training(ref: str, settings: Settings) -> LoadedModel:
    """A model laid out for training, weights in the parameter dtype."""

    def layout(spec: ModelSpec) -> Layout:
        return train_layout(make_mesh(settings.mesh.train), spec)

    return load_model(
        ref,
        layout,
        param_dtype=settings.model.param_dtype,
        compute_dtype=settings.model.compute_dtype,
    )
