"""A stage's folder on disk: its key, its parts, its manifest, and how a stage is resumed.

A folder holds `key.json` (what its content depends on), `part-00003-of-00032.jsonl` files, and,
once the stage is done, `manifest.json`. Every file appears by an atomic rename, so a process that
is killed at any moment leaves whole files only. Usage:

    folder = StageFolder(Path("run/round_0/01_preprocess"))
    if not folder.begin(key).done:
        folder.write_part(0, 1, rows)
        folder.finish({"kept": 3}, seconds=1.5)
"""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import invcoder_jax
from invcoder_jax.errors import UserError
from invcoder_jax.records import dump_line, from_json, parse_lines, to_json
from invcoder_jax.settings import fingerprint

SCHEMA = 1  # of key.json, the parts and the manifest
PART_NAME = re.compile(r"part-(\d{5})-of-(\d{5})\.jsonl")
Row = TypeVar("Row")


def cache_folder() -> Path:
    """For downloads and compiled programs: $INVCODER_CACHE_DIR or ~/.cache/invcoder_jax."""
    named = os.environ.get("INVCODER_CACHE_DIR")
    return Path(named) if named else Path.home() / ".cache" / "invcoder_jax"


@functools.cache
def code_version() -> str:
    """The package version, with the git commit when the package lies in a checkout."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return invcoder_jax.__version__
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = found.stdout.strip()
    return f"{invcoder_jax.__version__}+{commit}" if commit else invcoder_jax.__version__


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an indented JSON object atomically."""
    write_atomic(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that this project wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from error


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclass rows as JSON lines, atomically."""
    write_atomic(path, "".join(dump_line(to_json(row)) for row in rows).encode())


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Every row of a JSON-lines file as `kind`."""
    with open(path, "rb") as file:
        return [
            from_json(kind, data, f"{path} line {line}")
            for line, data in parse_lines(file, str(path))
        ]


@dataclasses.dataclass(frozen=True)
class StageKey:
    """What a stage's content is a function of: some settings, and the content of its inputs."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The key as plain JSON data."""
        data = {"schema": SCHEMA, "stage": self.stage, "settings": dict(self.settings)}
        return json.loads(json.dumps({**data, "inputs": dict(self.inputs)}))

    @property
    def sha(self) -> str:
        """sha256 of the key."""
        return fingerprint(self.to_json())


@dataclasses.dataclass(frozen=True)
class Begun:
    """What `begin` found: whether the stage is done, and why what was there no longer fits."""

    done: bool
    reasons: tuple[str, ...] = ()
    restored: bool = False


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """One sentence part for each setting or input that differs between two keys."""
    said = []
    for section in ("settings", "inputs"):
        before, after = old.get(section, {}), new.get(section, {})
        for name in sorted(set(before) | set(after)):
            if before.get(name) != after.get(name):
                if section == "inputs":
                    said.append(f"input {name} changed")
                else:
                    said.append(f"{name} {before.get(name)!r} -> {after.get(name)!r}")
    if old.get("schema") != new.get("schema"):
        said.append(f"schema {old.get('schema')} -> {new.get('schema')}")
    return tuple(said) or ("its key is unreadable",)


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """One stage's files. Content of another key is set aside, never deleted."""

    path: Path

    def begin(self, key: StageKey, *, nested: bool = False) -> Begun:
        """Make the folder ready for `key`: resume it, take it as done, or set it aside and start.

        A nested folder is not set aside: its content lies in stage folders with keys of their own.
        """
        wanted = key.to_json()
        begun = self._rewrite(wanted) if nested else self._set_aside(wanted)
        if not (self.path / "key.json").exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "key.json", wanted)
        self._remove_temporary()
        return dataclasses.replace(begun, done=(self.path / "manifest.json").exists())

    def _set_aside(self, wanted: Mapping[str, Any]) -> Begun:
        found = self.key()
        if found is None or found == wanted:
            return Begun(done=False)
        os.rename(self.path, self._superseded(found))
        earlier = self._superseded(wanted)
        if earlier.exists():
            os.rename(earlier, self.path)
        return Begun(False, differences(found, wanted), restored=self.path.exists())

    def _rewrite(self, wanted: Mapping[str, Any]) -> Begun:
        found = self.key()
        if found is None or found == wanted:
            return Begun(done=False)
        self.forget(["manifest.json", "key.json"])
        return Begun(False, differences(found, wanted))

    def _superseded(self, key: Mapping[str, Any]) -> Path:
        return self.path.with_name(f"{self.path.name}.superseded-{fingerprint(key)[:8]}")

    def _remove_temporary(self) -> None:
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def key(self) -> dict[str, Any] | None:
        """The key that the folder was begun with, or None for a new folder."""
        path = self.path / "key.json"
        return read_json(path) if path.exists() else None

    def part_path(self, index: int, parts: int) -> Path:
        """The file of part `index` of `parts`."""
        return self.path / f"part-{index:05d}-of-{parts:05d}.jsonl"

    def has_part(self, index: int, parts: int) -> bool:
        """Whether a part is finished."""
        return self.part_path(index, parts).exists()

    def write_part(self, index: int, parts: int, rows: Iterable[Any]) -> None:
        """Write one finished part."""
        write_rows(self.part_path(index, parts), rows)

    def read_part(self, index: int, parts: int, kind: type[Row]) -> list[Row]:
        """The rows of one part."""
        return read_rows(self.part_path(index, parts), kind)

    def part_files(self) -> list[Path]:
        """The finished parts in order."""
        return sorted(p for p in self.path.glob("part-*.jsonl") if PART_NAME.fullmatch(p.name))

    @property
    def parts(self) -> int:
        """How many parts the finished stage has."""
        return self.manifest()["parts"]

    def read_all(self, kind: type[Row]) -> Iterator[Row]:
        """Every row of every part, in order."""
        for path in self.part_files():
            yield from read_rows(path, kind)

    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished stage."""
        path = self.path / "manifest.json"
        if not path.exists():
            raise UserError(f"{self.path} is not finished; run its stage first")
        return read_json(path)

    @property
    def done(self) -> bool:
        """Whether the stage has finished under the key that it has now."""
        return (self.path / "manifest.json").exists()

    def finish(self, counts: Mapping[str, int], seconds: float, output_sha: str = "") -> None:
        """Write the manifest: from here on the stage is done.

        `output_sha` stands for the content; by default it is the sha256 of all its rows.
        """
        key = self.key() or {}
        files = self.part_files()
        rows = sum(path.read_bytes().count(b"\n") for path in files)
        digest = hashlib.sha256()
        for path in sorted(self.path.glob("*.jsonl")):
            digest.update(path.read_bytes())
        manifest = {
            "stage": key.get("stage"),
            "schema": SCHEMA,
            "settings": key.get("settings"),
            "settings_sha": fingerprint(key.get("settings")),
            "inputs": key.get("inputs"),
            "rows": rows,
            "counts": dict(counts),
            "parts": len(files),
            "output_sha": output_sha or digest.hexdigest(),
            "code_version": code_version(),
            "seconds": round(seconds, 3),
            "hosts": [socket.gethostname()],
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path / "manifest.json", manifest)

    def forget(self, names: Iterable[str]) -> None:
        """Remove unfinished files or folders of this stage by name, before they are made again."""
        for name in names:
            target = self.path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(workdir: Path, config_name: str) -> Iterator[None]:
    """Hold a workdir for one process and one config; UserError when either does not fit."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK):
        raise UserError(f"workdir {workdir} is read-only; choose a --workdir that can be written")
    label = workdir / "workdir.json"
    if not label.exists():
        if any(p.name != ".lock" for p in workdir.iterdir() if not p.name.endswith(".tmp")):
            raise UserError(f"workdir {workdir} holds other files; choose a new or empty --workdir")
        write_json(label, {"config": config_name})
    owner = read_json(label).get("config")
    if owner != config_name:
        raise UserError(
            f"workdir {workdir} belongs to the config {owner!r}, not {config_name!r}; "
            "choose another --workdir"
        )
    with open(workdir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"workdir {workdir} is in use by another process; wait for it or choose another"
            ) from error
        yield
