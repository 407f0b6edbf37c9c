"""What each command of the command line does, once its flags are parsed (cli.py)."""

import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from invcoder_jax import mesh, pipeline
from invcoder_jax.artifacts import StageFolder, StageKey, claimed, write_atomic, write_rows
from invcoder_jax.corpora.sources import read_pairs_file
from invcoder_jax.errors import UserError
from invcoder_jax.evaluation import humaneval
from invcoder_jax.generation.batching import generate as generate_completions
from invcoder_jax.generation.engine import Request
from invcoder_jax.model.sources import LoadedModel, load_model
from invcoder_jax.model.spec import ModelSpec
from invcoder_jax.progress import Advance, track
from invcoder_jax.prompts import load_prompts
from invcoder_jax.records import dump_line, parse_lines
from invcoder_jax.report import write_report
from invcoder_jax.report.tables import results_table, stage_times, status_table
from invcoder_jax.sandbox.runner import find_sandbox
from invcoder_jax.scoring import yes_probabilities
from invcoder_jax.settings import (
    BENCHMARKS,
    EvaluationSettings,
    GenerationSettings,
    SamplingSettings,
    ScoringSettings,
    from_config,
    require_choice,
)
from invcoder_jax.stages import benchmark
from invcoder_jax.stages.preprocess import preprocess as preprocess_pairs
from invcoder_jax.stages.self_evaluate import describe_yes_no

log = logging.getLogger(__name__)
PROMPT_BUCKETS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # padded prompt lengths, tokens
SYNC_STEPS = 16  # decode steps between two looks of the host
CHUNK = 256  # input rows a part: what an interrupted command has to make again at most


def run(values: Any, arguments: Sequence[str]) -> None:
    """invcoder run: the whole loop, then its table and the seconds of each stage."""
    settings = from_config(values.config)
    workdir = Path(values.workdir)
    mesh.enable_compilation_cache()
    if settings.evaluation.benchmarks:
        find_sandbox(settings.evaluation.allow_unsandboxed)  # refuse now, not after hours
    with claimed(workdir, settings.name):
        pipeline.run(settings, workdir)
    print(stage_times(workdir))
    print(results_table(workdir))
    if settings.expect_improvement:
        pipeline.check_improvement(settings, workdir)


def stage(values: Any, arguments: Sequence[str]) -> None:
    """invcoder stage NAME."""
    settings = from_config(values.config)
    workdir = Path(values.workdir)
    mesh.enable_compilation_cache()
    with claimed(workdir, settings.name):
        pipeline.run_one(settings, workdir, arguments[0])


def status(values: Any, arguments: Sequence[str]) -> None:
    """invcoder status."""
    print(status_table(Path(values.workdir)))


def report(values: Any, arguments: Sequence[str]) -> None:
    """invcoder report."""
    workdirs = [Path(given) for given in values.workdir]
    files = write_report(workdirs)
    for workdir in workdirs:
        print(results_table(workdir))
    print(f"report: {files.html}")


def generate(values: Any, arguments: Sequence[str]) -> None:
    """invcoder generate: `num_samples` rows for each prompt row."""
    sampling = SamplingSettings(
        temperature=values.temperature,
        top_p=values.top_p,
        repetition_penalty=values.repetition_penalty,
        max_new_tokens=values.max_new_tokens,
        stop=tuple(values.stop),
        seed=values.seed,
    )
    engine = GenerationSettings(values.rows, PROMPT_BUCKETS, SYNC_STEPS, CHUNK)
    rows = _read_input(Path(values.input), ({"id", "prompt"},))
    loaded = _load(values)

    def work(chunk: Sequence[dict[str, Any]], advance: Advance) -> Iterable[Any]:
        requests = [
            Request(row["id"], _encode(loaded, row["prompt"], values.add_bos), sample)
            for row in chunk
            for sample in range(values.num_samples)
        ]
        return generate_completions(loaded, requests, sampling, engine, advance)

    what = {**dataclasses.asdict(sampling), "num_samples": values.num_samples}
    _in_chunks(values, rows, values.num_samples, what, work)


def score(values: Any, arguments: Sequence[str]) -> None:
    """invcoder score: one row with both logits and P(Yes) for each input row."""
    wanted = ({"id", "prompt"}, {"id", "instruction", "response"})
    rows = _read_input(Path(values.input), wanted)
    loaded = _load(values)
    prompts = load_prompts()
    log.info("yes_no=%s", describe_yes_no(loaded))

    def text_of(row: dict[str, Any]) -> tuple[str, bool]:
        if "prompt" in row:
            return row["prompt"], values.add_bos
        return prompts.self_evaluate(row["instruction"], row["response"]), True

    def work(chunk: Sequence[dict[str, Any]], advance: Advance) -> Iterable[Any]:
        asked = [(row["id"], _encode(loaded, *text_of(row))) for row in chunk]
        return yes_probabilities(loaded, asked, ScoringSettings(values.rows), advance)

    _in_chunks(values, rows, 1, {}, work)


def preprocess(values: Any, arguments: Sequence[str]) -> None:
    """invcoder preprocess: snippets of a corpus file, and the counts by reason."""
    pairs = read_pairs_file(Path(values.input))
    snippets, counts = preprocess_pairs(pairs, values.rules)
    write_rows(Path(values.output), snippets)
    for reason, count in counts.items():
        print(f"{reason}={count}")


def evaluate(values: Any, arguments: Sequence[str]) -> None:
    """invcoder evaluate: a model, or a file of samples, on one benchmark."""
    require_choice("--benchmark", values.benchmark, BENCHMARKS)
    if (values.model is None) == (values.samples is None):
        raise UserError("give one of --model=REF and --samples=FILE: what is to be judged")
    problems = humaneval.select_problems(humaneval.load_problems(), values.every)
    settings = EvaluationSettings(
        benchmarks=(values.benchmark,),
        every=values.every,
        max_new_tokens=values.max_new_tokens,
        temperature=0.0,
        top_p=1.0,
        num_samples=1,
        timeout=values.timeout,
        memory_mb=values.memory_mb,
        allow_unsandboxed=values.allow_unsandboxed,
        workers=0,
    )
    folder = StageFolder(Path(values.output))
    if values.samples:
        programs = humaneval.read_samples(Path(values.samples), problems)
        folder.path.mkdir(parents=True, exist_ok=True)
        found = benchmark.judge_programs(problems, programs, folder.path, settings)
    else:
        key = {"model": values.model, "every": values.every, "dtype": values.dtype}
        folder.begin(StageKey("evaluate", {**key, "max_new_tokens": values.max_new_tokens}, {}))
        engine = GenerationSettings(values.rows, PROMPT_BUCKETS, SYNC_STEPS, CHUNK)
        prompts = load_prompts()
        benchmark.complete(
            problems, _load(values), prompts, settings, engine, 0, folder, values.benchmark
        )
        found = benchmark.judge_folder(problems, folder, settings)
    print(" ".join(f"{name}={value}" for name, value in found.items()))


def _load(values: Any) -> LoadedModel:
    mesh.enable_compilation_cache()

    def layout(spec: ModelSpec) -> mesh.Layout:
        return mesh.serve_layout(mesh.make_mesh((-1, 1, 1)), spec)

    return load_model(values.model, layout, param_dtype=values.dtype, compute_dtype=values.dtype)


def _encode(loaded: LoadedModel, text: str, add_bos: bool) -> tuple[int, ...]:
    ids = loaded.tokenizer.encode(text)
    return tuple(loaded.tokenizer.with_bos(ids) if add_bos else ids)


def _read_input(path: Path, wanted: Sequence[set[str]]) -> list[dict[str, Any]]:
    """Rows of text columns with one of the wanted sets of columns, and ids that differ."""
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    with open(path, "rb") as file:
        for line, row in parse_lines(file, str(path)):
            where = f"{path} line {line}"
            if set(row) not in wanted:
                raise UserError(
                    f"{where}: the columns are {sorted(row)}; a row must have "
                    + " or ".join(str(sorted(columns)) for columns in wanted)
                )
            for name, value in row.items():
                if not isinstance(value, str):
                    kind = type(value).__name__
                    raise UserError(f"{where}: column {name} is a {kind}; it must be a text")
            if row["id"] in seen:
                raise UserError(
                    f"{where}: the id {row['id']!r} stands in line {seen[row['id']]} too; "
                    "give every row an id of its own"
                )
            seen[row["id"]] = line
            rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no rows; give at least one")
    return rows


def _in_chunks(
    values: Any,
    rows: list[dict[str, Any]],
    units: int,
    what: dict[str, Any],
    work: Callable[[Sequence[dict[str, Any]], Advance], Iterable[Any]],
) -> None:
    """Work through the rows, keep each finished chunk beside the output, then write the output."""
    output = Path(values.output)
    folder = StageFolder(output.with_name(f"{output.name}.parts"))
    content = hashlib.sha256("".join(map(dump_line, rows)).encode()).hexdigest()
    model = {"model": values.model, "dtype": values.dtype, "add_bos": values.add_bos}
    folder.begin(StageKey("rows", {**model, **what}, {"input": content}))
    parts = -(-len(rows) // CHUNK)
    with track(len(rows) * units, output.name, "rows") as advance:
        for index in range(parts):
            chunk = rows[index * CHUNK : (index + 1) * CHUNK]
            if folder.has_part(index, parts):
                advance(len(chunk) * units)
            else:
                folder.write_part(index, parts, work(chunk, advance))
    write_atomic(output, b"".join(path.read_bytes() for path in folder.part_files()))
    shutil.rmtree(folder.path)
