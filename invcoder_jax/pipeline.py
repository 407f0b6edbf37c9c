"""The stages in their order, what each depends on, and the rounds.

A stage runs when its folder is not done under its key; the key says which settings and inputs its
content is a function of. Usage: `run(settings, Path("runs/quickstart"))`.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from invcoder_jax.artifacts import StageFolder, StageKey, read_json, write_json
from invcoder_jax.errors import UserError
from invcoder_jax.prompts import load_prompts
from invcoder_jax.records import Score
from invcoder_jax.settings import Settings, what
from invcoder_jax.stages import (
    benchmark,
    corpus,
    decontaminate,
    finetune,
    preprocess,
    select,
    self_evaluate,
    summarize,
)
from invcoder_jax.stages.inputs import Counts, Inputs

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: the function that runs it, the names of its inputs, and the settings it depends on.

    An input is an earlier stage, or the role of a model (base, teacher).
    """

    name: str
    folder: str
    run: Callable[[Settings, Inputs, StageFolder], Counts]
    inputs: tuple[str, ...]
    depends: Callable[[Settings], Mapping[str, Any]]
    nested: bool = False  # its content lies in stage folders with keys of their own


def _training(settings: Settings, epochs: str) -> dict[str, Any]:
    train = what(settings.train)
    for name in ("teacher_epochs", "self_epochs", "original_epochs"):
        chosen = train.pop(name)
        if name == epochs:
            train["epochs"] = chosen
    instruct = load_prompts(settings.prompts.file).instruct("{instruction}")
    dtypes = [settings.model.param_dtype, settings.model.compute_dtype]
    return {**_named("train", train), "seed": settings.seed, "dtypes": dtypes, "prompt": instruct}


def _sampled(settings: Settings) -> dict[str, Any]:
    prompts = load_prompts(settings.prompts.file)
    return {
        **_named("summarize", what(settings.summarize)),
        "seed": settings.seed,
        "compute_dtype": settings.model.compute_dtype,
        "prompt": prompts.summarize("{block}"),
        "prefixes": list(prompts.prefixes),
    }


def _scored(settings: Settings) -> dict[str, Any]:
    prompt = load_prompts(settings.prompts.file).self_evaluate("{instruction}", "{block}")
    return {"compute_dtype": settings.model.compute_dtype, "prompt": prompt}


def _read(settings: Settings) -> dict[str, Any]:
    source = {"corpus.content": corpus.identity(settings.corpus.source)}
    return {**_named("corpus", what(settings.corpus)), **source}


def _named(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in values.items()}


# In the order of running: preprocess needs no device, so a corpus without code fails at once.
STAGES = (
    Stage("corpus", "corpus", corpus.run, (), _read),
    Stage(
        "preprocess", "01_preprocess", preprocess.run, ("corpus",),
        lambda s: _named("preprocess", what(s.preprocess)),
    ),
    Stage(
        "finetune_teacher", "00_finetune_teacher", finetune.run_teacher, ("base", "corpus"),
        lambda s: _training(s, "teacher_epochs"),
    ),
    Stage("summarize", "02_summarize", summarize.run, ("teacher", "preprocess"), _sampled),
    Stage(
        "self_evaluate", "03_self_evaluate", self_evaluate.run,
        ("teacher", "preprocess", "summarize"), _scored,
    ),
    Stage(
        "select", "04_select", select.run, ("preprocess", "summarize", "self_evaluate"),
        lambda s: _named("select", what(s.select)),
    ),
    Stage(
        "decontaminate", "05_decontaminate", decontaminate.run, ("select",),
        lambda s: {"benchmarks": decontaminate.benchmarks_to_remove(s)},
    ),
    Stage(
        "finetune_self", "06_finetune_self", finetune.run_self, ("base", "decontaminate"),
        lambda s: _training(s, "self_epochs"),
    ),
    Stage(
        "finetune_original", "07_finetune_original", finetune.run_original,
        ("finetune_self", "corpus"), lambda s: _training(s, "original_epochs"),
    ),
    Stage(
        "benchmark", "08_benchmark", benchmark.run,
        ("base", "teacher", "finetune_original", "corpus"), benchmark.depends, nested=True,
    ),
)  # fmt: skip
NAMES = tuple(stage.name for stage in STAGES)


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of the loop in a workdir: its stages, folders and models."""

    settings: Settings
    workdir: Path
    index: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of this round; with a ready teacher (or after round 0) none is finetuned."""
        skip = {"finetune_teacher"} if self.settings.model.teacher or self.index else set()
        return tuple(stage for stage in STAGES if stage.name not in skip)

    def folder(self, stage: Stage) -> StageFolder:
        """Where a stage keeps its files."""
        inside = self.workdir if stage.name == "corpus" else self.workdir / f"round_{self.index}"
        return StageFolder(inside / stage.folder)

    def named(self, name: str) -> StageFolder:
        """The folder of the stage called `name`."""
        return self.folder(STAGES[NAMES.index(name)])

    @property
    def teacher(self) -> tuple[str, StageFolder | None]:
        """M's REF, and the stage folder that it comes from where it comes from one."""
        if self.index:
            before = dataclasses.replace(self, index=self.index - 1).named("finetune_original")
            return str(before.path / "checkpoint"), before
        if self.settings.model.teacher:
            return self.settings.model.teacher, None
        made = self.named("finetune_teacher")
        return str(made.path / "checkpoint"), made

    def inputs(self) -> Inputs:
        """Folders and model REFs, as stages take them."""
        models = {
            "base": self.settings.model.base,
            "teacher": self.teacher[0],
            "self": str(self.named("finetune_self").path / "checkpoint"),
            "inversecoder": str(self.named("finetune_original").path / "checkpoint"),
        }
        return Inputs({stage.name: self.folder(stage) for stage in self.stages}, models)

    def key(self, stage: Stage) -> StageKey:
        """What the stage depends on; UserError when a stage before it is not finished."""
        return StageKey(
            stage.name,
            stage.depends(self.settings),
            {name: self._input_sha(name) for name in stage.inputs},
        )

    def _input_sha(self, name: str) -> str:
        if name == "base":
            return self.settings.model.base
        folder = self.teacher[1] if name == "teacher" else self.named(name)
        if folder is None:
            return self.teacher[0]
        if not folder.done:
            stage = next(s.name for s in STAGES if s.folder == folder.path.name)
            raise UserError(
                f"stage {stage} is not finished in {folder.path}; "
                f"run `invcoder stage {stage}` first"
            )
        return folder.manifest()["output_sha"]

    def run_stage(self, stage: Stage) -> None:
        """Run one stage unless it is done; says why when something has to be made again."""
        folder = self.folder(stage)
        key = self.key(stage)
        begun = folder.begin(key, nested=stage.nested)
        where = f"round={self.index} stage={stage.name}"
        if begun.reasons:
            log.info("%s changed=%s", where, "; ".join(begun.reasons))
        if begun.done:
            log.info("%s %s", where, "restored" if begun.restored else "already_done")
            return
        log.info("%s started", where)
        started = time.monotonic()
        counts = stage.run(self.settings, self.inputs(), folder)
        seconds = time.monotonic() - started
        is_training = stage.name.startswith("finetune")
        folder.finish(counts, seconds, output_sha=key.sha if is_training else "")
        said = " ".join(f"{name}={count}" for name, count in counts.items())
        log.info("%s finished seconds=%.1f %s", where, seconds, said)


def rounds(settings: Settings, workdir: Path) -> Iterator[Round]:
    """The rounds of a run, in order."""
    for index in range(settings.rounds):
        yield Round(settings, workdir, index)


def run(settings: Settings, workdir: Path) -> None:
    """The whole loop; a second call resumes or finds everything done."""
    write_json(workdir / "config.json", dataclasses.asdict(settings))
    for one in rounds(settings, workdir):
        for stage in one.stages:
            one.run_stage(stage)


def run_one(settings: Settings, workdir: Path, name: str) -> None:
    """One stage of the first round whose stage of that name is not done, else of the last."""
    if name not in NAMES:
        raise UserError(f"stage {name!r} is not known; choose one of {', '.join(NAMES)}")
    write_json(workdir / "config.json", dataclasses.asdict(settings))
    for one in rounds(settings, workdir):
        stage = next((stage for stage in one.stages if stage.name == name), None)
        if stage is None:
            continue
        if not one.folder(stage).done or one.index == settings.rounds - 1:
            one.run_stage(stage)
            return
    raise UserError(f"stage {name} does not run here: model.teacher names a ready teacher")


def check_improvement(settings: Settings, workdir: Path) -> None:
    """UserError unless both tuned models beat the base's held-out loss and the scores differ."""
    last = Round(settings, workdir, settings.rounds - 1)
    scores = {row.yes_probability for row in last.named("self_evaluate").read_all(Score)}
    if len(scores) < 2:
        raise UserError(
            f"the self-evaluation gave {len(scores)} different scores, so nothing was selected; "
            "look at 03_self_evaluate and the prompts"
        )
    found = read_json(last.named("benchmark").path / "results.json")["models"]
    loss = {model["model"]: model["heldout"]["loss"] for model in found}
    for role in ("teacher", "inversecoder"):
        if not loss[role] < loss["base"]:
            raise UserError(
                f"the held-out loss of {role} is {loss[role]:.4f}, not below the base's "
                f"{loss['base']:.4f}; raise train.learning_rate or corpus.limit"
            )
