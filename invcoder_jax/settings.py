"""A run's settings as frozen dataclasses, checked once, with the values in every message.

The ConfigDict of a config file is the only source; defaults live in configs/base.py alone.
Usage: `settings = from_config(config); settings.train.batch`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

from ml_collections import ConfigDict

from invcoder_jax.errors import UserError

BENCHMARKS = ("humaneval",)


def how(**kwargs: Any) -> Any:
    """A field that changes how a stage runs, not what it computes; it is no part of stage keys."""
    return dataclasses.field(metadata={"how": True}, **kwargs)


def require(holds: bool, message: str) -> None:
    """UserError with `message` unless the rule holds."""
    if not holds:
        raise UserError(message)


def require_positive(section: str, settings: Any, names: Iterable[str]) -> None:
    """Each named field must be at least 1."""
    for name in names:
        value = getattr(settings, name)
        require(value >= 1, f"{section}.{name} is {value}; set it to 1 or more")


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """`value` must be one of the choices."""
    require(value in tuple(choices), f"{name} is {value!r}; set it to one of {tuple(choices)}")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    base: str
    teacher: str
    compute_dtype: str
    param_dtype: str

    def __post_init__(self) -> None:
        require(
            bool(self.base), "model.base is empty; name the base model, --config.model.base=REF"
        )
        for name in ("compute_dtype", "param_dtype"):
            require_choice(f"model.{name}", getattr(self, name), ("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    source: str
    limit: int
    heldout: int
    max_chars: int
    min_chars: int

    def __post_init__(self) -> None:
        require(
            bool(self.source), "corpus.source is empty; name a corpus, --config.corpus.source=PATH"
        )
        for name in ("limit", "heldout", "max_chars", "min_chars"):
            value = getattr(self, name)
            require(value >= 0, f"corpus.{name} is {value}; set it to 0 or more")


@dataclasses.dataclass(frozen=True)
class PreprocessSettings:
    rules: str

    def __post_init__(self) -> None:
        require_choice("preprocess.rules", self.rules, ("mended", "paper"))


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    file: str


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn; repetition_penalty follows Hugging Face (prompt included)."""

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.temperature >= 0,
            f"temperature is {self.temperature}; set it to 0 (greedy) or more",
        )
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; set it above 0 and at most 1")
        require(
            self.repetition_penalty > 0,
            f"repetition_penalty is {self.repetition_penalty}; set it above 0 (1 is off)",
        )
        require(
            self.max_new_tokens >= 1,
            f"max_new_tokens is {self.max_new_tokens}; set it to 1 or more",
        )
        require(all(self.stop), f"stop is {self.stop!r}; a stop string must not be empty")


@dataclasses.dataclass(frozen=True)
class SummarizeSettings:
    candidates: int
    temperature: float
    top_p: float
    repetition_penalty: float
    max_new_tokens: int
    stop: tuple[str, ...]

    def __post_init__(self) -> None:
        require_positive("summarize", self, ("candidates",))
        self.sampling(0)

    def sampling(self, seed: int) -> SamplingSettings:
        """These settings as the generation engine takes them."""
        return SamplingSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            seed=seed,
        )


@dataclasses.dataclass(frozen=True)
class SelectSettings:
    top: int

    def __post_init__(self) -> None:
        require_positive("select", self, ("top",))


@dataclasses.dataclass(frozen=True)
class DecontaminateSettings:
    benchmarks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    batch: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    max_length: int
    teacher_epochs: int
    self_epochs: int
    original_epochs: int
    microbatch: int = how()
    length_buckets: tuple[int, ...] = how()
    checkpoint_every: int = how()
    keep_checkpoints: int = how()

    def __post_init__(self) -> None:
        names = "batch max_length teacher_epochs self_epochs original_epochs microbatch"
        require_positive("train", self, names.split() + ["checkpoint_every", "keep_checkpoints"])
        require_choice("train.schedule", self.schedule, ("linear", "constant"))
        require(
            self.learning_rate > 0, f"train.learning_rate is {self.learning_rate}; set it above 0"
        )
        require(
            self.warmup_steps >= 0,
            f"train.warmup_steps is {self.warmup_steps}; set it to 0 or more",
        )
        require(
            self.batch % self.microbatch == 0,
            f"train.batch {self.batch} does not divide into microbatches of {self.microbatch}; "
            f"set train.microbatch to a divisor of {self.batch}",
        )
        _require_buckets("train.length_buckets", self.length_buckets)
        require(
            self.length_buckets[-1] >= self.max_length,
            f"train.length_buckets end at {self.length_buckets[-1]}, below train.max_length "
            f"{self.max_length}; append {self.max_length}",
        )


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    rows: int = how()
    prompt_buckets: tuple[int, ...] = how()
    sync_steps: int = how()
    part_rows: int = how()

    def __post_init__(self) -> None:
        require_positive("generation", self, ("rows", "sync_steps", "part_rows"))
        _require_buckets("generation.prompt_buckets", self.prompt_buckets)


@dataclasses.dataclass(frozen=True)
class ScoringSettings:
    rows: int = how()

    def __post_init__(self) -> None:
        require_positive("scoring", self, ("rows",))


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    benchmarks: tuple[str, ...]
    every: int
    max_new_tokens: int
    temperature: float
    top_p: float
    num_samples: int
    timeout: float
    memory_mb: int
    allow_unsandboxed: bool
    workers: int = how()

    def __post_init__(self) -> None:
        require_positive("evaluation", self, ("every", "num_samples", "memory_mb"))
        for name in self.benchmarks:
            require_choice("evaluation.benchmarks", name, BENCHMARKS)
        require(self.timeout > 0, f"evaluation.timeout is {self.timeout} s; set it above 0")
        require(self.workers >= 0, f"evaluation.workers is {self.workers}; set it to 0 or more")
        self.sampling(0)

    def sampling(self, seed: int) -> SamplingSettings:
        """These settings as the generation engine takes them; benchmarks add their own stops."""
        return SamplingSettings(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=seed,
        )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    train: tuple[int, ...] = how()
    serve: tuple[int, ...] = how()

    def __post_init__(self) -> None:
        for name in ("train", "serve"):
            shape = getattr(self, name)
            require(
                len(shape) == 3
                and sum(n == -1 for n in shape) <= 1
                and all(n == -1 or n > 0 for n in shape),
                f"mesh.{name} is {shape}; give three sizes (replica, fsdp, model), "
                "at most one of them -1",
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of a run, section by section as configs/base.py explains them."""

    name: str
    seed: int
    rounds: int
    expect_improvement: bool
    model: ModelSettings
    corpus: CorpusSettings
    preprocess: PreprocessSettings
    prompts: PromptSettings
    summarize: SummarizeSettings
    select: SelectSettings
    decontaminate: DecontaminateSettings
    train: TrainSettings
    generation: GenerationSettings
    scoring: ScoringSettings
    evaluation: EvaluationSettings
    mesh: MeshSettings

    def __post_init__(self) -> None:
        require(bool(self.name), "name is empty; give the config a name of its own")
        require_positive("config", self, ("rounds",))
        require(
            self.select.top <= self.summarize.candidates,
            f"select.top {self.select.top} is more than summarize.candidates "
            f"{self.summarize.candidates}; lower select.top",
        )


def from_config(config: ConfigDict) -> Settings:
    """The checked settings of a ConfigDict; UserError says which field is off and why."""
    return _build(Settings, config.to_dict(), "config")


Section = TypeVar("Section")


def _build(kind: type[Section], values: dict[str, Any], where: str) -> Section:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    unknown, missing = sorted(set(values) - set(fields)), sorted(set(fields) - set(values))
    require(
        not unknown and not missing,
        f"{where}: unknown fields {unknown}, missing fields {missing}; "
        f"the fields are {sorted(fields)}",
    )
    built = {}
    for name, field in fields.items():
        value = values[name]
        if dataclasses.is_dataclass(field.type):
            require(isinstance(value, dict), f"{where}.{name} is {value!r}; it must be a section")
            built[name] = _build(field.type, value, f"{where}.{name}")  # type: ignore[arg-type]  # checked above
        else:
            built[name] = _convert(field.type, value, f"{where}.{name}")
    return kind(**built)


def _convert(wanted: Any, value: Any, where: str) -> Any:
    origin = getattr(wanted, "__origin__", wanted)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = wanted.__args__[0]
        return tuple(_convert(inner, item, where) for item in value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    ok = isinstance(value, origin) and not (isinstance(value, bool) and origin is not bool)
    require(ok, f"{where} is {value!r}, a {type(value).__name__}; it must be a {origin.__name__}")
    return value


def _require_buckets(name: str, buckets: tuple[int, ...]) -> None:
    require(
        bool(buckets) and all(n > 0 for n in buckets) and list(buckets) == sorted(set(buckets)),
        f"{name} is {buckets}; give one or more lengths in tokens, rising",
    )


def what(section: Any) -> dict[str, Any]:
    """The fields of a section that decide what is computed, for a stage's key."""
    return {
        f.name: getattr(section, f.name)
        for f in dataclasses.fields(section)
        if not f.metadata.get("how")
    }


def fingerprint(data: Any) -> str:
    """sha256 (hex) of JSON-able data, independent of key order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
