"""Pairs published as a TFDS dataset in ArrayRecord, and read back by random access.

Needs no TensorFlow, neither to write nor to read; any TFDS installation can open the folder with
`tfds.builder_from_directory(folder)`. The same pairs give the same bytes. Usage:

    publish(pairs, folder)
    open_pairs(folder)[7].instruction
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from invcoder_jax.artifacts import write_json
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair, dump_line, to_json

NAME, SPLIT = "pairs", "train"
DATA_FILE = f"{NAME}-{SPLIT}.array_record-00000-of-00001"
LABEL_FILE = "published.json"  # written last: a folder without it is half-written
OWN_FILES = {DATA_FILE, LABEL_FILE, "dataset_info.json", "features.json"}
# One record a group: a random read decompresses that record only.
WRITER_OPTIONS = "group_size:1"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedPairs:
    """The pairs of a folder in the order of their publishing; reads one record at a time."""

    source: Any  # TFDS's data source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Pair:
        """The pair at `index`, negative from the end; IndexError outside."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        row = self.source[position]
        return Pair(**{name: bytes(value).decode("utf-8") for name, value in row.items()})


def publish(pairs: Sequence[Pair], folder: Path) -> None:
    """Write `pairs` into `folder` unless they are there; what is half-written is made again.

    UserError when the folder holds files of another kind, or when there are no pairs.
    """
    if not pairs:
        raise UserError(f"there are no pairs to publish in '{folder}'; give at least one")
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(dump_line(to_json(pair)).encode())
    label = {"pairs": len(pairs), "sha256": digest.hexdigest()}
    if _label(folder) == label:
        log.info("publish=%s already_there pairs=%d", folder, len(pairs))
        return
    foreign = {p.name for p in folder.iterdir()} - OWN_FILES if folder.exists() else set()
    foreign = {name for name in foreign if not name.endswith(".tmp")}
    if foreign:
        raise UserError(
            f"folder '{folder}' holds other files, {sorted(foreign)[0]!r}; name a new folder"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write(pairs, folder)
    size = (folder / DATA_FILE).stat().st_size
    write_json(folder / LABEL_FILE, {**label, "bytes": size})
    log.info("publish=%s pairs=%d bytes=%d", folder, len(pairs), size)


def open_pairs(folder: Path) -> PublishedPairs:
    """The pairs that `publish` wrote; UserError when the folder is missing or half-written."""
    import tensorflow_datasets as tfds

    if _label(folder) is None:
        raise UserError(f"folder '{folder}' holds no whole set of pairs; publish them again")
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split=SPLIT)  # type: ignore[call-arg]  # decorated
    return PublishedPairs(source)


def _label(folder: Path) -> dict[str, Any] | None:
    """What a wholly written folder says about itself, None for any other folder."""
    try:
        label = json.loads((folder / LABEL_FILE).read_text(encoding="utf-8"))
        size = (folder / DATA_FILE).stat().st_size
    except (OSError, ValueError):
        return None
    return label if label.pop("bytes", None) == size else None


def _write(pairs: Sequence[Pair], folder: Path) -> None:
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
    from tensorflow_datasets.core.splits import SplitInfo

    names = [field.name for field in dataclasses.fields(Pair)]
    features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})
    serializer = ExampleSerializer(features.get_serialized_info())  # type: ignore[arg-type]  # its own type
    writer = ArrayRecordWriter(str(folder / DATA_FILE), WRITER_OPTIONS)
    total = 0
    for pair in pairs:
        example = serializer.get_tf_example(features.encode_example(to_json(pair)))
        record = example.SerializeToString(deterministic=True)  # else fields come in any order
        writer.write(record)
        total += len(record)
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=NAME, split=SPLIT, filetype_suffix="array_record"
    )
    split = SplitInfo(
        name=SPLIT, shard_lengths=[len(pairs)], num_bytes=total, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[split],
        check_data=False,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
