"""Checkpoint folders: the only file that knows Orbax.

A checkpoint folder is a model REF: `spec.json`, the tokenizer's files, and `steps/` with one
folder a step (params, opt, meta). A step appears whole or not at all. Usage:

    describe(folder, spec, tokenizer)
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(100, params, opt_state, {"loss": 0.5})
"""

import contextlib
import gc
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import absl.logging
import jax
import orbax.checkpoint as ocp

from invcoder_jax.artifacts import read_json, write_json
from invcoder_jax.errors import UserError
from invcoder_jax.tokenization import Tokenizer

SPEC_FILE, STEPS_FOLDER = "spec.json", "steps"
OVERHEAD_BYTES = 1 << 20  # of a step beside its arrays: Orbax's own files and directories
Tree = TypeVar("Tree")  # a pytree of arrays


def describe(folder: Path | str, spec: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Write what a reader needs beside the weights: the model's spec and the tokenizer's files."""
    folder = Path(folder)
    with _writing("its description", folder):
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        write_json(folder / SPEC_FILE, spec)


def is_checkpoint(folder: Path | str) -> bool:
    """Whether a path is a folder that `describe` and `Checkpoints` wrote."""
    folder = Path(folder)
    return (folder / SPEC_FILE).is_file() and (folder / STEPS_FOLDER).is_dir()


def read_spec(folder: Path | str) -> dict[str, Any]:
    """The spec that `describe` wrote, as plain JSON data."""
    return read_json(Path(folder) / SPEC_FILE)


def restore_params(folder: Path | str, like: Tree) -> Tree:
    """The weights of the latest step, as the ShapeDtypeStructs of `like` say (dtype, sharding).

    UserError when no step is finished, or when the step is damaged or of another model.
    """
    folder = Path(folder)
    _quiet()
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager((folder / STEPS_FOLDER).absolute(), options=options) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(
                f"{folder} holds no finished checkpoint; let its training run to a first "
                "train.checkpoint_every, or name another model"
            )
        return _read(manager, step, folder, params=ocp.args.StandardRestore(like)).params


class Checkpoints:
    """The steps of one training run, written in the background; the newest `keep` stay."""

    def __init__(self, folder: Path | str, keep: int) -> None:
        self.folder = Path(folder)
        _quiet()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        with _writing("its steps", self.folder):
            steps = self.folder / STEPS_FOLDER
            steps.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(steps.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def latest(self) -> int | None:
        """The newest finished step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, opt_state: Any, meta: Mapping[str, Any]) -> None:
        """Begin to write a step; the arrays may be donated at once, errors may come later.

        UserError before anything is written when the disk has no room for it.
        """
        self._require_room(params, opt_state)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            opt=ocp.args.StandardSave(opt_state),
            meta=ocp.args.JsonSave(dict(meta)),
        )
        with _writing(f"step {step}", self.folder):
            self._manager.save(step, args=items)

    def _require_room(self, *trees: Any) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + OVERHEAD_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"the disk of {self.folder} has {free / 1e6:.1f} MB free and a checkpoint takes up "
                f"to {needed / 1e6:.1f} MB; free some space and run again, finished parts stay"
            )

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON data that was saved with a step."""
        return _read(self._manager, step, self.folder, meta=ocp.args.JsonRestore()).meta

    def restore(self, step: int, like_params: Any, like_opt: Any) -> tuple[Any, Any]:
        """The params and optimizer state of a step, as the ShapeDtypeStructs of `like_*` say."""
        found = _read(
            self._manager,
            step,
            self.folder,
            params=ocp.args.StandardRestore(like_params),
            opt=ocp.args.StandardRestore(like_opt),
        )
        return found.params, found.opt

    def close(self) -> None:
        """Wait until everything is on disk."""
        with _writing("its last step", self.folder):
            self._manager.wait_until_finished()
            self._manager.close()


def _quiet() -> None:
    """Orbax logs some twenty lines a save through absl, and its errors reach us as exceptions."""
    absl.logging.set_verbosity(absl.logging.FATAL)


@contextlib.contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"checkpoint folder {folder}: {what} cannot be written ({_first_line(error)}); "
            "free disk space or choose a folder that can be written, then run again"
        ) from error


def _read(manager: ocp.CheckpointManager, step: int, folder: Path, **items: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises a bare Exception for a damaged array
        reason = _first_line(error)
    _drop_abandoned_reads()
    raise UserError(
        f"checkpoint folder {folder}: step {step} is damaged or of another model ({reason}); "
        f"delete {folder / STEPS_FOLDER / str(step)} to fall back to an earlier step"
    )


def _drop_abandoned_reads() -> None:
    """Collect the reads that Orbax abandons on an error: each prints a traceback when it dies."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if "No space left on device" in text:
        return "the disk is full"
    return (text.splitlines() or [type(error).__name__])[0][:200]
