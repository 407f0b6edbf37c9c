"""The one place of the report that reads a workdir, finished or half done.

Owns no formatting and writes nothing. A piece that is not there yet is a state, not an error.
Usage: `run = open_run(Path("runs/quickstart")); run.rounds[0].stage("08_benchmark").done`.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from invcoder_jax.artifacts import PART_NAME, StageFolder, read_json
from invcoder_jax.errors import UserError
from invcoder_jax.records import parse_lines

NOT_YET = "not there yet"
CORPUS = "corpus"
TEACHER, SELF, ORIGINAL = "00_finetune_teacher", "06_finetune_self", "07_finetune_original"
PREPROCESS, SUMMARIZE, SELF_EVALUATE = "01_preprocess", "02_summarize", "03_self_evaluate"
SELECT, DECONTAMINATE, BENCHMARK = "04_select", "05_decontaminate", "08_benchmark"
STAGES = (
    TEACHER,
    PREPROCESS,
    SUMMARIZE,
    SELF_EVALUATE,
    SELECT,
    DECONTAMINATE,
    SELF,
    ORIGINAL,
    BENCHMARK,
)
WITHOUT_ROWS = (TEACHER, SELF, ORIGINAL, BENCHMARK)
MEASURES = ("benchmark", "problems", "samples", "passed", "counts")  # and pass@k; all else in a
# benchmark's results is a condition
MODELS = {"base": "base", "teacher": "M (teacher)", "inversecoder": "InverseCoder"}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's folder as it was found.

    `skipped` says why the stage will never be there; `changed` names the inputs and settings that
    have changed since it finished.
    """

    name: str
    folder: StageFolder
    manifest: Mapping[str, Any] | None
    skipped: str = ""
    changed: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the stage has finished."""
        return self.manifest is not None

    @property
    def rows(self) -> int | None:
        """Rows of a finished stage; None where it is unfinished or writes no rows."""
        if self.manifest is None or self.name in WITHOUT_ROWS:
            return None
        return self.manifest["rows"]

    def row_count(self) -> int:
        """Rows that are there so far."""
        if self.manifest is not None:
            return self.manifest["rows"]
        return sum(path.read_bytes().count(b"\n") for path in self.folder.part_files())

    def state(self) -> str:
        """In a few words whether the stage is done, and what is missing if not."""
        if self.changed:
            return f"out of date: {', '.join(self.changed)} changed since"
        if self.done:
            return "done"
        if self.skipped:
            return f"skipped: {self.skipped}"
        files = self.folder.part_files()
        if files:
            return f"{NOT_YET} ({len(files)} of {_parts_expected(files[0])} parts)"
        return NOT_YET


def _parts_expected(part: Path) -> int:
    found = PART_NAME.fullmatch(part.name)
    return int(found.group(2)) if found else 0


@dataclasses.dataclass(frozen=True)
class Round:
    """One turn of the loop."""

    number: int
    stages: tuple[Stage, ...]
    models: Mapping[str, Stage]  # the benchmark's folder of each model

    @property
    def name(self) -> str:
        """The round's folder name."""
        return f"round_{self.number}"

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def results(self) -> dict[str, Mapping[str, Any]]:
        """What has been measured so far: model -> {"ref", "benchmarks", "heldout"}."""
        if self.stage(BENCHMARK).done:
            return {one["model"]: one for one in self._joined()["models"]}
        return {
            model: read_json(stage.folder.path / "results.json")
            for model, stage in self.models.items()
            if stage.done
        }

    def outdated(self, model: str) -> bool:
        """Whether a model's results come from inputs or settings that have changed since."""
        return bool(self.stage(BENCHMARK).changed or self.models[model].changed)

    def conditions(self) -> dict[str, Any]:
        """How the results were measured; the benchmark's own conditions are named after it."""
        said = dict(self._joined().get("conditions", {})) if self.stage(BENCHMARK).done else {}
        own: dict[str, dict[str, Any]] = {}
        for model, result in self.results().items():
            for name, found in result["benchmarks"].items():
                for field, value in found.items():
                    if field not in MEASURES and not field.startswith("pass@"):
                        own.setdefault(f"{name}.{field}", {})[MODELS[model]] = value
        for field, values in own.items():
            first = next(iter(values.values()))
            said[field] = first if all(v == first for v in values.values()) else values
        return said

    def _joined(self) -> dict[str, Any]:
        return read_json(self.stage(BENCHMARK).folder.path / "results.json")

    def metrics(self, stage: str) -> list[tuple[int, float]]:
        """(step, loss) of a finetune so far; a step that a resume ran again counts once."""
        path = self.stage(stage).folder.path / "metrics.jsonl"
        return sorted({int(row["step"]): float(row["loss"]) for row in read_objects(path)}.items())


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir; `label` tells it from the other workdirs of a report."""

    path: Path
    label: str
    config: str
    settings: Mapping[str, Any]
    corpus: Stage
    rounds: tuple[Round, ...]

    def stages(self) -> list[tuple[str, int | None, Stage]]:
        """(name to show, round number, stage) in the order of the loop; the corpus has no round."""
        found: list[tuple[str, int | None, Stage]] = [(self.corpus.name, None, self.corpus)]
        for turn in self.rounds:
            prefix = f"{turn.name}/" if len(self.rounds) > 1 else ""
            found += [(prefix + stage.name, turn.number, stage) for stage in turn.stages]
        return found

    def notes(self) -> list[str]:
        """One line for each stage that has not finished or is out of date."""
        said = []
        for name, _, stage in self.stages():
            if stage.changed:
                said.append(f"stage {name} is {stage.state()}")
            elif not stage.done and not stage.skipped:
                said.append(stage.state().replace(NOT_YET, f"{NOT_YET}: stage {name}"))
        return said


def open_run(workdir: Path, label: str = "") -> Run:
    """The run in a workdir; UserError when the folder is no workdir."""
    if not (workdir / "workdir.json").is_file():
        raise UserError(
            f"{workdir} is no workdir, it holds no workdir.json; "
            "give the folder that `invcoder run --workdir=DIR` has written"
        )
    settings_file = workdir / "config.json"
    settings = read_json(settings_file) if settings_file.exists() else {}
    there = [int(p.name[6:]) for p in workdir.glob("round_*") if p.name[6:].isdigit()]
    count = max(settings.get("rounds", 1), *(number + 1 for number in there), 1)
    reader = _Reader(settings)
    corpus = reader.corpus(workdir)
    return Run(
        path=workdir,
        label=label or workdir.resolve().name,
        config=read_json(workdir / "workdir.json").get("config", ""),
        settings=settings,
        corpus=corpus,
        rounds=tuple(reader.round(workdir, number) for number in range(count)),
    )


class _Reader:
    """Reads stages in the loop's order; `current` holds what a later stage should have been given.

    An unfinished or outdated stage gives None, so all that was made from it is outdated too.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = flatten(settings)
        model = settings.get("model", {})
        self.teacher = model.get("teacher", "")
        self.current = {"base": model.get("base"), "teacher": self.teacher or None}

    def corpus(self, workdir: Path) -> Stage:
        """The corpus, which all rounds share."""
        stage = self._stage(workdir / CORPUS)
        self._gives(CORPUS, stage)
        return stage

    def round(self, workdir: Path, number: int) -> Round:
        """One round; its M is the round's own, the given one, or the last round's InverseCoder."""
        skipped = f"M is given, {self.teacher}" if self.teacher else ""
        if number:
            skipped = f"M is the InverseCoder of round_{number - 1}"
            self.current["teacher"] = self.current[short(ORIGINAL)]
        folder = workdir / f"round_{number}"
        stages = []
        for name in STAGES:
            stage = self._stage(folder / name, skipped if name == TEACHER else "")
            stages.append(stage)
            if not stage.skipped:
                self._gives("teacher" if name == TEACHER else short(name), stage)
        models = {model: self._stage(folder / BENCHMARK / model) for model in MODELS}
        return Round(number, tuple(stages), models)

    def _stage(self, path: Path, skipped: str = "") -> Stage:
        folder = StageFolder(path)
        if skipped or not folder.done:
            return Stage(path.name, folder, None, skipped)
        manifest = folder.manifest()
        return Stage(path.name, folder, manifest, changed=self._changed(manifest))

    def _changed(self, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        if not self.settings:
            return ()
        used = flatten(manifest.get("settings") or {})
        settings = [name for name, v in used.items() if self.settings.get(name, v) != v]
        given = manifest.get("inputs") or {}
        inputs = [f"input {name}" for name, sha in given.items() if self.current.get(name) != sha]
        return tuple(settings + inputs)

    def _gives(self, name: str, stage: Stage) -> None:
        fresh = stage.manifest is not None and not stage.changed
        self.current[name] = stage.manifest["output_sha"] if fresh and stage.manifest else None


def short(name: str) -> str:
    """The name by which `invcoder stage` and other stages' manifests know a stage's folder."""
    return name.partition("_")[2]


def open_runs(workdirs: list[Path]) -> list[Run]:
    """Runs whose labels are folder names, or whole paths where two folders share a name."""
    if not workdirs:
        raise UserError("no workdir was given, a report reads at least one; add --workdir=DIR")
    names = Counter(path.resolve().name for path in workdirs)
    return [
        open_run(path, str(path) if names[path.resolve().name] > 1 else "") for path in workdirs
    ]


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """JSON objects of a file that may still grow: a last line without its end is left for later."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        whole = (line for line in file if line.endswith(b"\n"))
        for _, data in parse_lines(whole, str(path)):
            yield data


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as "section.field" -> JSON text."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value, ensure_ascii=False)
    return flat
