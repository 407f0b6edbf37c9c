"""How weights are named and laid out in files, and reading them onto the mesh.

One table says, for each of our parameters, its name in Hugging Face and GGUF files and the
transform between the layouts. It does not know where files come from (sources.py).
Usage: `params = load_into(abstract_params(spec, layout, dtype), SafetensorsFolder(folder), spec)`.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import gguf
import gguf.quants
import jax
import numpy as np
import safetensors

from invcoder_jax.errors import UserError
from invcoder_jax.model.decoder import Params
from invcoder_jax.model.spec import ModelSpec

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Named:
    """One of our parameters in files; "{layer}" in a name: one tensor a layer, stacked by us."""

    path: tuple[str, ...]
    hf: str
    gguf: str
    transposed: bool = False  # files hold [out, in], we hold [in, out]
    gguf_interleaved: str = ""  # GGUF pairs neighbouring rows for rotation; the head count's name


def _block(name: str, hf: str, gguf_name: str, matrix: bool = True, interleaved: str = "") -> Named:
    return Named(
        path=("blocks", name),
        hf=f"model.layers.{{layer}}.{hf}.weight",
        gguf=f"blk.{{layer}}.{gguf_name}.weight",
        transposed=matrix,
        gguf_interleaved=interleaved,
    )


TABLE = (
    Named(("embed",), "model.embed_tokens.weight", "token_embd.weight"),
    _block("attention_norm", "input_layernorm", "attn_norm", matrix=False),
    _block("wq", "self_attn.q_proj", "attn_q", interleaved="heads"),
    _block("wk", "self_attn.k_proj", "attn_k", interleaved="kv_heads"),
    _block("wv", "self_attn.v_proj", "attn_v"),
    _block("wo", "self_attn.o_proj", "attn_output"),
    _block("mlp_norm", "post_attention_layernorm", "ffn_norm", matrix=False),
    _block("gate", "mlp.gate_proj", "ffn_gate"),
    _block("up", "mlp.up_proj", "ffn_up"),
    _block("down", "mlp.down_proj", "ffn_down"),
    Named(("final_norm",), "model.norm.weight", "output_norm.weight"),
    Named(("head",), "lm_head.weight", "output.weight", transposed=True),
)

# Tensors that files may hold beside the table's: buffers of old transformers versions.
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class TensorFile(Protocol):
    """Named host arrays, read one at a time in Hugging Face's layout."""

    @property
    def where(self) -> str:
        """The file or folder, for messages."""
        ...

    def names(self) -> set[str]:
        """Every tensor that is there."""
        ...

    def name_of(self, entry: Named) -> str:
        """What this kind of file calls a parameter."""
        ...

    def read(self, name: str, entry: Named, spec: ModelSpec) -> np.ndarray:
        """One tensor, whole; UserError when it is damaged."""
        ...


class SafetensorsFolder:
    """A Hugging Face folder's model.safetensors, or the shards of its index."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder
        self._shard_of: dict[str, str] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._shard_of = _read_index(index)
        elif (folder / "model.safetensors").is_file():
            with self._open("model.safetensors") as file:
                self._shard_of = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise UserError(_no_safetensors(folder))

    def names(self) -> set[str]:
        """Every tensor of every shard."""
        return set(self._shard_of)

    def name_of(self, entry: Named) -> str:
        """Hugging Face's name."""
        return entry.hf

    def read(self, name: str, entry: Named, spec: ModelSpec) -> np.ndarray:
        """One tensor from its shard."""
        shard = self._shard_of[name]
        with self._open(shard) as file:
            if name not in file.keys():
                raise UserError(
                    f"{self._folder / shard} lacks tensor {name!r} that the index places there; "
                    f"download the shard again"
                )
            return file.get_tensor(name)

    @contextlib.contextmanager
    def _open(self, shard: str) -> Iterator[Any]:
        path = self._folder / shard
        if not path.is_file():
            raise UserError(f"shard {path} is missing; download the model again")
        try:
            opened = safetensors.safe_open(path, framework="np")
        except (safetensors.SafetensorError, OSError, struct.error) as error:
            raise UserError(f"{path} is damaged or cut ({error}); download it again") from error
        with opened as file:
            yield file


class GgufFile:
    """One GGUF file; quantised tensors are expanded to float32 as they are read."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise UserError(f"{path} is no whole GGUF file ({error}); download it again") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """The file's fields as python values."""
        return {name: field.contents() for name, field in self._reader.fields.items()}

    def names(self) -> set[str]:
        """Every tensor of the file."""
        return set(self._tensors)

    def name_of(self, entry: Named) -> str:
        """GGUF's name."""
        return entry.gguf

    def read(self, name: str, entry: Named, spec: ModelSpec) -> np.ndarray:
        """One tensor in float32, its rows in Hugging Face's order."""
        tensor = self._tensors[name]
        try:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"tensor {name!r} of {self.where} is quantised as {tensor.tensor_type.name}, "
                f"which cannot be expanded; convert the file to Q8_0 or F16"
            ) from error
        if entry.gguf_interleaved:
            array = _halves_from_pairs(array, getattr(spec, entry.gguf_interleaved))
        return array


def load_into(like: Params, file: TensorFile, spec: ModelSpec) -> Params:
    """Every parameter of `like` (ShapeDtypeStructs with shardings) read from `file` onto the mesh.

    One parameter at a time is on the host. UserError names a tensor that is missing, is not known
    or has another shape.
    """
    entries = [entry for entry in TABLE if not (spec.tied and entry.path == ("head",))]
    _check_names(entries, file, spec)
    params: Params = {"blocks": {}}
    for entry in entries:
        *outer, leaf = entry.path
        wanted: jax.ShapeDtypeStruct = functools.reduce(_child, entry.path, like)
        holder = functools.reduce(_child, outer, params)
        host = _read_parameter(entry, file, spec, wanted)
        holder[leaf] = jax.block_until_ready(jax.device_put(host, wanted.sharding))
    log.info("weights=%s tensors=%d", file.where, len(file.names()))
    return params


def _child(tree: Any, key: str) -> Any:
    return tree[key]


def _read_parameter(
    entry: Named, file: TensorFile, spec: ModelSpec, wanted: jax.ShapeDtypeStruct
) -> np.ndarray:
    name = file.name_of(entry)
    if "{layer}" not in name:
        return _read_tensor(name, entry, file, spec, wanted.shape).astype(wanted.dtype)
    stacked = np.empty(wanted.shape, wanted.dtype)
    for layer in range(spec.layers):
        one = name.format(layer=layer)
        stacked[layer] = _read_tensor(one, entry, file, spec, wanted.shape[1:])
    return stacked


def _read_tensor(
    name: str, entry: Named, file: TensorFile, spec: ModelSpec, shape: tuple[int, ...]
) -> np.ndarray:
    array = file.read(name, entry, spec)
    array = array.T if entry.transposed else array
    if array.shape != shape:
        raise UserError(
            f"tensor {name!r} of {file.where} has shape {array.shape} where the model's config "
            f"makes it {shape} ([in, out] for matrices); the weights belong to another config"
        )
    return array


def _check_names(entries: list[Named], file: TensorFile, spec: ModelSpec) -> None:
    wanted = {
        file.name_of(entry).format(layer=layer) for entry in entries for layer in range(spec.layers)
    }
    there = {name for name in file.names() if not DERIVED.fullmatch(name)}
    if spec.tied:
        there.discard("lm_head.weight")  # some files repeat the embedding under this name
    if missing := sorted(wanted - there):
        raise UserError(
            f"{file.where} lacks {len(missing)} tensors, first {missing[0]!r}; "
            f"download the model again"
        )
    if extra := sorted(there - wanted):
        raise UserError(
            f"{file.where} has {len(extra)} tensors that no parameter takes, first {extra[0]!r}; "
            f"use a model whose config says all that it computes"
        )


def _halves_from_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head reordered: GGUF's llama rotates rows 2i and 2i+1, HF i and i + H/2."""
    paired = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return paired.swapaxes(1, 2).reshape(array.shape)


def _read_index(index: Path) -> dict[str, str]:
    try:
        shard_of = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of shards ({error}); download it again") from error
    if not all(Path(shard).name == shard for shard in shard_of.values()):
        raise UserError(f"{index} places tensors outside of its folder; do not use this model")
    return shard_of


def _no_safetensors(folder: Path) -> str:
    pickles = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if pickles:
        return (
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run code when it is "
            f"read; convert it to safetensors"
        )
    return f"{folder} has no model.safetensors; name a folder that has one"
