"""Tokenizer files in, token ids out; prompt and response are encoded apart.

Owns special ids and BOS/EOS placement; knows nothing of models. Never goes through a tokenizer
class of transformers: `AutoTokenizer` on CodeLlama's files loses a leading space.
Usage: `tokenizer = load_tokenizer(folder); tokenizer.with_bos(tokenizer.encode("def f():"))`.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from invcoder_jax.errors import UserError

TOKENIZER_FILE, META_FILE = "tokenizer.json", "tokenizer_meta.json"
GGUF_CONTROL, GGUF_USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
BYTE_SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>")


@dataclasses.dataclass(frozen=True)
class YesNo:
    """Ids of the first token of a "Yes" and a "No" response, and all the tokens of each."""

    yes_id: int
    no_id: int
    yes_tokens: tuple[int, ...]
    no_tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizers backend with its special ids; eos_ids[0] closes training examples."""

    backend: Backend
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    add_bos: bool

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included; a model's embedding may be larger."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens written in it are recognised, none is added."""
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise UserError(
                f"text {text[:40]!r} cannot be encoded as UTF-8; remove its unpaired surrogates"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def with_bos(self, ids: Sequence[int]) -> list[int]:
        """`ids` behind a BOS if this family was trained with one."""
        if self.add_bos and self.bos_id is not None:
            return [self.bos_id, *ids]
        return list(ids)

    def yes_no(self) -> YesNo:
        """Looked up, never assumed: a word may be several tokens, or differ after a space."""
        yes, no = self.encode("Yes"), self.encode("No")
        if yes[:1] == no[:1]:
            raise UserError(
                f"this tokenizer begins Yes {yes} and No {no} with one token; "
                "choose a model whose tokenizer tells them apart"
            )
        return YesNo(yes[0], no[0], tuple(yes), tuple(no))

    def save(self, folder: epath.PathLike) -> None:
        """Writes tokenizer.json and tokenizer_meta.json into an existing folder."""
        meta = {n: getattr(self, n) for n in ("bos_id", "eos_ids", "pad_id", "add_bos")}
        path = epath.Path(folder)
        (path / TOKENIZER_FILE).write_text(self.backend.to_str(pretty=False))
        (path / META_FILE).write_text(json.dumps(meta))


@dataclasses.dataclass(frozen=True)
class Family:
    """Special ids of a model family, known by a token at an id; `size` cuts added tokens off."""

    token: str
    token_id: int
    bos_id: int
    eos_id: int
    add_bos: bool
    size: int | None = None


# Used where a folder's own configs are silent. CodeLlama-Python has 32,000 embeddings;
# the infill ids above them in some tokenizer files are not the official ones.
FAMILIES = (
    Family("▁<PRE>", 32000, bos_id=1, eos_id=2, add_bos=True, size=32000),
    Family("<｜begin▁of▁sentence｜>", 32013, bos_id=32013, eos_id=32014, add_bos=True),
    Family("<|im_start|>", 151644, bos_id=151643, eos_id=151643, add_bos=False),
    Family("<pr_status>", 19, bos_id=0, eos_id=0, add_bos=False),  # StarCoder2
    Family("<|im_start|>", 1, bos_id=0, eos_id=0, add_bos=False),  # SmolLM2 base
)


def load_tokenizer(folder: epath.PathLike) -> Tokenizer:
    """The tokenizer of a checkpoint or Hugging Face folder; UserError if a file is off.

    Special ids come from tokenizer_meta.json, else tokenizer_config.json, generation_config.json
    and config.json, else the family's (FAMILIES).
    """
    path = epath.Path(folder)
    data = _read_json(path / TOKENIZER_FILE)
    if data is None:
        raise UserError(f"folder '{path}' has no {TOKENIZER_FILE}; name a folder that has one")
    meta = _read_json(path / META_FILE)
    if meta is not None:
        return Tokenizer(
            backend=_backend(data, path),
            bos_id=meta["bos_id"],
            eos_ids=tuple(meta["eos_ids"]),
            pad_id=meta["pad_id"],
            add_bos=meta["add_bos"],
        )
    family = _family(data)
    config = _read_json(path / "config.json") or {}
    size = config.get("vocab_size") or (family.size if family else None)
    if size:
        data["added_tokens"] = [t for t in data.get("added_tokens", []) if t["id"] < size]
    backend = _backend(data, path)
    generation = _read_json(path / "generation_config.json") or {}
    named = _read_json(path / "tokenizer_config.json") or {}
    return _with_special_ids(backend, family, path, named, [generation, config])


def _with_special_ids(
    backend: Backend,
    family: Family | None,
    path: epath.Path,
    named: Mapping[str, Any],
    numbered: Sequence[Mapping[str, Any]],
) -> Tokenizer:
    """`named` is tokenizer_config.json (tokens as texts); `numbered` are configs with ids."""

    def ids(kind: str) -> list[int]:
        token = named.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        found = [backend.token_to_id(token)] if token else []
        for config in numbered:
            value = config.get(f"{kind}_token_id")
            found += value if isinstance(value, list) else [value]
        return list(dict.fromkeys(i for i in found if i is not None))

    bos, eos, pad = ids("bos"), ids("eos"), ids("pad")
    if family:
        bos, eos = bos or [family.bos_id], eos or [family.eos_id]
    if not eos:
        raise UserError(f"folder '{path}' names no end-of-text token; add tokenizer_config.json")
    add_bos = named.get("add_bos_token")
    if add_bos is None:
        add_bos = family.add_bos if family else backend.encode("a").ids[:1] == bos[:1]
    return Tokenizer(
        backend=backend,
        bos_id=bos[0] if bos else None,
        eos_ids=tuple(eos),
        pad_id=pad[0] if pad else eos[0],
        add_bos=bool(add_bos),
    )


def _family(data: Mapping[str, Any]) -> Family | None:
    added = {(t["content"], t["id"]) for t in data.get("added_tokens", [])}
    return next((f for f in FAMILIES if (f.token, f.token_id) in added), None)


def _backend(data: Mapping[str, Any], path: epath.Path) -> Backend:
    plain = {**data, "truncation": None, "padding": None}
    try:
        return Backend.from_str(json.dumps(plain))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"'{path / TOKENIZER_FILE}' is no tokenizer ({error}); fetch the file again"
        ) from error


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file."""
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON ({error}); fetch the file again") from error
    if not isinstance(data, dict):
        raise UserError(f"'{path}' holds a {type(data).__name__}; it must be a JSON object")
    return data


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE from a GGUF's fields (name -> value); UserError for another kind."""

    def field(name: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}", default)

    kind = (field("model"), field("pre"), bool(field("add_space_prefix", False)))
    if kind != ("gpt2", "smollm", False):
        raise UserError(
            f"GGUF tokenizer (model, pre, add_space_prefix) is {kind}, only "
            "('gpt2', 'smollm', False) is known; load this model from its Hugging Face folder"
        )
    tokens = field("tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in field("merges")]
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    # Every digit apart, then GPT-2's split: what pre = "smollm" stands for.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    types = list(zip(tokens, field("token_type", [1] * len(tokens)), strict=True))
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, n in types if n == GGUF_CONTROL]
    )
    backend.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t, n in types if n == GGUF_USER_DEFINED]
    )
    eos_ids = [field(n) for n in ("eos_token_id", "eot_token_id") if field(n) is not None]
    if not eos_ids:
        raise UserError("the GGUF names no tokenizer.ggml.eos_token_id; convert the model again")
    return Tokenizer(
        backend=backend,
        bos_id=field("bos_token_id"),
        eos_ids=tuple(dict.fromkeys(eos_ids)),
        pad_id=field("padding_token_id", eos_ids[0]),
        add_bos=bool(field("add_bos_token", False)),
    )


def byte_tokenizer() -> Tokenizer:
    """Ids 0-255 are the bytes of UTF-8, 256-258 the specials; for random models in tests."""
    # GPT-2's table: printable bytes stand for themselves, the others for U+0100 and up.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [b for b in range(256) if b not in printable]
    vocab = {chr(b): b for b in printable}
    vocab |= {chr(256 + n): b for n, b in enumerate(shifted)}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in BYTE_SPECIALS])
    return Tokenizer(backend, bos_id=256, eos_ids=(257,), pad_id=258, add_bos=True)


@dataclasses.dataclass(frozen=True)
class Example:
    """A training row: tokens[:prompt_length] carry no loss; `cut` if the row was too long."""

    tokens: tuple[int, ...]
    prompt_length: int
    cut: bool


def encode_example(tokenizer: Tokenizer, prompt: str, response: str, max_length: int) -> Example:
    """[BOS] + prompt + response + EOS, encoded apart, cut at the right to `max_length` tokens."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; set it to 1 token or more")
    head = tokenizer.with_bos(tokenizer.encode(prompt))
    tokens = [*head, *tokenizer.encode(response), tokenizer.eos_ids[0]]
    return Example(
        tokens=tuple(tokens[:max_length]),
        prompt_length=min(len(head), max_length),
        cut=len(tokens) > max_length,
    )
