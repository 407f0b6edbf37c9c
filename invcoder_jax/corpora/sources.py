"""The instruction corpus D from wherever it is: a file, code, the Hub or TFDS.

Every row that is not used is counted under a reason. A malformed row of a file is the user's to
mend, so it is an error and never skipped. Usage: `corpus = read_corpus(settings.corpus)`.
"""

import csv
import dataclasses
import gzip
import io
import json
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from invcoder_jax.codeblocks import fence
from invcoder_jax.corpora.code_folder import read_code_folder, read_stdlib
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair, content_id, parse_lines
from invcoder_jax.settings import CorpusSettings

# Columns of a row: the task, what belongs to it (may be absent), the answer. The last form is
# CodeI/O's, whose answers are bare Python programs.
FORMS = (
    ("instruction", "input", "response"),
    ("instruction", "input", "output"),
    ("task_description", "input_output_spec", "code_sample"),
)
ENDINGS = (".json", ".jsonl", ".csv")
Row = Mapping[str, Any]
Numbered = Iterable[tuple[str, Row]]  # where a row stands, for messages, and the row
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """D: len(train) + len(heldout) + sum(dropped.values()) == seen."""

    train: list[Pair]
    heldout: list[Pair]
    dropped: dict[str, int]
    seen: int


def read_corpus(settings: CorpusSettings) -> Corpus:
    """Training and held-out pairs, with every dropped row counted by reason.

    Held-out pairs are chosen by a hash of their content, before and apart from `limit`; so is the
    subset that `limit` keeps, so that a smaller one lies inside a larger one. Pairs of a file
    keep their order, those of code are put in the order of their hash. UserError when too few
    pairs are left.
    """
    pairs, dropped = _read_source(settings.source)
    seen = len(pairs) + dropped.total()
    usable: list[Pair] = []
    for pair in pairs:
        reason = _unusable(pair, settings)
        if reason:
            dropped[reason] += 1
        else:
            usable.append(pair)
    heldout = sorted({_mix(p): p for p in reversed(usable)}.items())[: settings.heldout]
    apart = dict(heldout)
    train = [pair for pair in usable if _mix(pair) not in apart]
    dropped["copy_of_heldout"] += len(usable) - len(train) - len(heldout)
    if not train or len(heldout) < settings.heldout:
        raise UserError(
            f"corpus {settings.source!r} has {len(usable)} usable pairs of {seen} rows "
            f"(dropped: {dict(+dropped)}), too few for corpus.heldout {settings.heldout} and at "
            "least one to train on; lower corpus.heldout or loosen corpus.min_chars and max_chars"
        )
    ranked = sorted(train, key=lambda pair: (_mix(pair), pair.id))
    chosen = ranked[: settings.limit] if settings.limit else ranked
    dropped["over_limit"] += len(train) - len(chosen)
    if not _is_code(settings.source):
        ids = {pair.id for pair in chosen}
        chosen = [pair for pair in train if pair.id in ids]
    log.info(
        "corpus=%s seen=%d train=%d heldout=%d dropped=%s",
        settings.source, seen, len(chosen), len(heldout), dict(+dropped),
    )  # fmt: skip
    return Corpus(chosen, [pair for _, pair in heldout], dict(+dropped), seen)


def _mix(pair: Pair) -> str:
    """A random-looking key of a pair's content; copies share it."""
    return content_id("mix", pair.instruction, pair.response)


def _is_code(source: str) -> bool:
    return source == "stdlib" or source.startswith("folder:")


def _unusable(pair: Pair, settings: CorpusSettings) -> str:
    length = len(pair.instruction) + len(pair.response)
    if not pair.instruction.strip():
        return "empty_instruction"
    if not pair.response.strip():
        return "empty_response"
    if settings.max_chars and length > settings.max_chars:
        return "too_long"
    return "too_short" if len(pair.response) < settings.min_chars else ""


def _read_source(source: str) -> tuple[list[Pair], Counter[str]]:
    kind, _, rest = source.partition(":")
    if source == "stdlib":
        return read_stdlib()
    if kind == "folder":
        return read_code_folder(Path(rest), Path(rest).resolve().name)
    if kind in ("hub", "tfds"):
        name, _, split = rest.partition("@")
        rows = (_read_hub if kind == "hub" else _read_tfds)(name, split or "train")
        return _pairs(rows, source), Counter()
    return read_pairs_file(Path(source)), Counter()


def read_pairs_file(path: Path) -> list[Pair]:
    """Every row of a .json, .jsonl or .csv file (also .gz) as a pair, empty ones too, in order.

    A row has instruction and response (or output), and may have input. Equal rows get ids of
    their own. UserError names file, line and column of the first thing that is wrong.
    """
    ending = Path(path.name.removesuffix(".gz")).suffix
    if ending not in ENDINGS:
        raise UserError(
            f"corpus '{path}' ends in {ending or 'nothing'!r}; give a file that ends in one of "
            f"{', '.join(ENDINGS)} (.gz may follow), or folder:PATH, stdlib, hub:NAME, tfds:NAME"
        )
    data = _read_bytes(path)
    reader = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}[ending]
    pairs = _pairs(reader(data, str(path)), path.name)
    if not pairs:
        raise UserError(f"corpus '{path}' has no rows; give a file with at least one")
    return pairs


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"corpus '{path}' is not a whole gzip file ({error}); fetch or pack it again"
        ) from error
    except OSError as error:
        raise UserError(
            f"corpus '{path}' cannot be read ({error.strerror}); check the path"
        ) from error
    return data.removeprefix(b"\xef\xbb\xbf")


def _jsonl_rows(data: bytes, where: str) -> Iterator[tuple[str, Row]]:
    for number, row in parse_lines(io.BytesIO(data), where):
        yield f"{where} line {number}", row


def _json_rows(data: bytes, where: str) -> Iterator[tuple[str, Row]]:
    """A list of objects, or JSON lines."""
    if not data.lstrip().startswith(b"["):
        yield from _jsonl_rows(data, where)
        return
    try:
        rows = json.loads(_decode(data, where))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{where} is not JSON ({error}); write a list of objects or one object a line"
        ) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{where} row {number}: found a {type(row).__name__}; "
                "each row must be one JSON object"
            )
        yield f"{where} row {number}", row


def _csv_rows(data: bytes, where: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(sys.maxsize)  # responses may be longer than csv's default of 128 KiB
    reader = csv.reader(io.StringIO(_decode(data, where), newline=""), strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            place = f"{where} line {reader.line_num}"
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{place}: {len(values)} columns and the header has {len(header)}; "
                    'put fields with commas or line ends between double quotes (")'
                )
            yield place, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{where} line {reader.line_num}: not CSV ({error}); mend the quotes"
        ) from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where} line {line}: byte {data[error.start]:#04x} is not valid UTF-8; "
            "save the file as UTF-8"
        ) from error


def _read_hub(name: str, split: str) -> Iterator[tuple[str, Row]]:
    """Rows of a dataset of the Hugging Face Hub, or of a local folder in its layout."""
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"corpus 'hub:{name}@{split}' cannot be loaded ({reason}); "
            "check the name, the split and the network"
        ) from error
    yield from ((f"hub:{name}@{split} row {n}", row) for n, row in enumerate(rows, start=1))


def _read_tfds(name: str, split: str) -> Iterator[tuple[str, Row]]:
    """Rows of a TFDS dataset, by name or from a folder that holds one in ArrayRecord."""
    import tensorflow_datasets as tfds

    where = f"tfds:{name}@{split}"
    try:
        if Path(name).is_dir():
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        source: Any = builder.as_data_source(split=split)  # type: ignore[call-arg]  # decorated
    except (OSError, ValueError, ImportError, NotImplementedError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"corpus {where!r} cannot be loaded ({reason}); check the name and the split, and "
            "that it is stored as ArrayRecord"
        ) from error
    for number in range(len(source)):
        place = f"{where} row {number + 1}"
        yield place, {column: _text(value, place) for column, value in source[number].items()}


def _text(value: Any, where: str) -> Any:
    return _decode(bytes(value), where) if isinstance(value, bytes) else value


def _pairs(rows: Numbered, source: str) -> list[Pair]:
    pairs: list[Pair] = []
    occurrences: Counter[tuple[str, str]] = Counter()
    for where, row in rows:
        content = _content(row, where)
        pairs.append(Pair.make(*content, source=source, occurrence=occurrences[content]))
        occurrences[content] += 1
    return pairs


def _content(row: Row, where: str) -> tuple[str, str]:
    """(instruction with its input, response) of a row in one of the FORMS."""
    form = next((f for f in FORMS if f[0] in row and f[2] in row), None)
    if form is None:
        raise UserError(
            f"{where}: found the columns {sorted(map(str, row))}; "
            "a row needs instruction and response (or output), and may have input"
        )
    task, extra, answer = form
    instruction = _string(row, task, where)
    given = "" if row.get(extra) is None else _string(row, extra, where)
    if given.strip():
        instruction = f"{instruction}\n\n{given}"
    if answer == "output" and isinstance(row[answer], dict):
        return instruction, _files(row, where)
    return instruction, _string(row, answer, where)


def _string(row: Row, column: str, where: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise UserError(
            f"{where}: column {column} is a {type(value).__name__}; it must be a string"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: column {column} has an unpaired surrogate at character {error.start}; "
            "remove it, it stands for no character"
        ) from error
    return value


def _files(row: Row, where: str) -> str:
    """A response of several files, {name: content}, as fenced blocks in the row's `lang`."""
    language = _string(row, "lang", where) if "lang" in row else ""
    names = sorted(map(str, row["output"]))
    return "\n\n".join(fence(_string(row["output"], n, where), language) for n in names)
