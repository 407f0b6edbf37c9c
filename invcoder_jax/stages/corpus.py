"""Stage corpus: the instruction corpus D, read once into the workdir, held-out pairs apart."""

import hashlib
import sys
from pathlib import Path

from invcoder_jax.artifacts import StageFolder, read_rows, write_rows
from invcoder_jax.corpora.sources import read_corpus
from invcoder_jax.records import Pair
from invcoder_jax.settings import Settings
from invcoder_jax.stages.inputs import Counts, Inputs

HELDOUT = "heldout.jsonl"


def run(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Write D's pairs in parts of `generation.part_rows`; returns what was kept and dropped."""
    corpus = read_corpus(settings.corpus)
    size = settings.generation.part_rows
    parts = -(-len(corpus.train) // size)
    out.forget(path.name for path in out.part_files())
    write_rows(out.path / HELDOUT, corpus.heldout)
    for index in range(parts):
        out.write_part(index, parts, corpus.train[index * size : (index + 1) * size])
    counts = {"train": len(corpus.train), "heldout": len(corpus.heldout)}
    return counts | {f"dropped_{reason}": n for reason, n in corpus.dropped.items()}


def heldout_pairs(corpus: StageFolder) -> list[Pair]:
    """The pairs that no stage trains on."""
    return read_rows(corpus.path / HELDOUT, Pair)


def identity(source: str) -> str:
    """What stands for the content of a corpus source in the stage's key."""
    if source == "stdlib":
        return f"Python {sys.version.split()[0]}"
    kind, _, name = source.partition(":")
    if kind in ("hub", "tfds"):
        return source
    path = Path(name) if kind == "folder" else Path(source)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if file.exists():
            digest.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
