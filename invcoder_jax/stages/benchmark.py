"""Stage benchmark: base, M and InverseCoder on the benchmarks and on the held-out pairs.

Completions are written part by part before anything is judged, so a restart judges what is there.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from invcoder_jax.artifacts import StageFolder, StageKey, code_version, read_json, write_json
from invcoder_jax.evaluation import humaneval
from invcoder_jax.generation.batching import generate
from invcoder_jax.generation.engine import Request
from invcoder_jax.model.sources import LoadedModel
from invcoder_jax.progress import silent, track
from invcoder_jax.prompts import Prompts, load_prompts
from invcoder_jax.scoring import mean_log_probs
from invcoder_jax.settings import EvaluationSettings, GenerationSettings, Settings, what
from invcoder_jax.stages.corpus import heldout_pairs
from invcoder_jax.stages.inputs import Counts, Inputs, load_for_serving
from invcoder_jax.tokenization import encode_example

ROLES = ("base", "teacher", "inversecoder")
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class BenchmarkCompletion:
    """What a model wrote after a problem's prefilled response."""

    task_id: str
    sample: int
    completion: str
    finish_reason: str


def run(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Measure each model in a folder of its own, then join their results in results.json."""
    models, counts = [], {}
    for role in ROLES:
        folder = StageFolder(out.path / role)
        key = StageKey(f"benchmark {role}", depends(settings), _model_input(inputs, out, role))
        if not folder.begin(key).done:
            _measure(settings, inputs, role, folder)
        result = read_json(folder.path / "results.json")
        models.append({"model": role, "ref": _shown(inputs.models[role], out), **result})
        counts |= {
            f"{role}_{name}_passed": found["passed"] for name, found in result["benchmarks"].items()
        }
    conditions = _conditions(settings)
    write_json(out.path / "results.json", {"models": models, "conditions": conditions})
    return counts


def depends(settings: Settings) -> dict[str, Any]:
    """What a model's results are a function of, beside the model and the held-out pairs."""
    return {
        "evaluation": what(settings.evaluation),
        "seed": settings.seed,
        "max_length": settings.train.max_length,
        "compute_dtype": settings.model.compute_dtype,
        "prompts": dataclasses.asdict(load_prompts(settings.prompts.file)),
    }


def _model_input(inputs: Inputs, out: StageFolder, role: str) -> dict[str, str]:
    stated = (out.key() or {}).get("inputs", {})
    stage = {"base": "base", "teacher": "teacher", "inversecoder": "finetune_original"}[role]
    return {name: stated[name] for name in (stage, "corpus") if name in stated}


def _shown(ref: str, out: StageFolder) -> str:
    """A REF as results.json says it: a checkpoint of this run by its path inside the workdir."""
    path, workdir = Path(ref), out.path.parent.parent
    return str(path.relative_to(workdir)) if path.is_relative_to(workdir) else ref


def _measure(settings: Settings, inputs: Inputs, role: str, folder: StageFolder) -> None:
    started = time.monotonic()
    loaded = load_for_serving(inputs.models[role], settings)
    prompts = load_prompts(settings.prompts.file)
    found: dict[str, Any] = {}
    for name in settings.evaluation.benchmarks:
        part = StageFolder(folder.path / name)
        part.begin(StageKey(f"{role} {name}", {}, {}))
        problems = humaneval.select_problems(humaneval.load_problems(), settings.evaluation.every)
        evaluation, generation = settings.evaluation, settings.generation
        complete(problems, loaded, prompts, evaluation, generation, settings.seed, part, role)
        found[name] = judge_folder(problems, part, evaluation)
    heldout = heldout_loss(loaded, prompts, settings, inputs.folder("corpus"), role)
    write_json(folder.path / "results.json", {"benchmarks": found, "heldout": heldout})
    folder.finish({}, time.monotonic() - started)


def complete(
    problems: list[humaneval.Problem],
    loaded: LoadedModel,
    prompts: Prompts,
    evaluation: EvaluationSettings,
    generation: GenerationSettings,
    seed: int,
    out: StageFolder,
    role: str,
) -> None:
    """Write the model's completions of the problems to `out`, part by part."""
    size, samples = generation.part_rows, range(evaluation.num_samples)
    parts = -(-len(problems) // size)
    sampling = dataclasses.replace(evaluation.sampling(seed), stop=(humaneval.STOP,))
    with track(len(problems) * len(samples), f"benchmark {role}", "samples") as advance:
        for index in range(parts):
            requests = [
                Request(problem.task_id, _prompt_ids(problem, loaded, prompts), sample)
                for problem in problems[index * size : (index + 1) * size]
                for sample in samples
            ]
            if out.has_part(index, parts):
                advance(len(requests))
                continue
            made = generate(loaded, requests, sampling, generation, advance)
            rows = [BenchmarkCompletion(c.id, c.sample, c.text, c.finish_reason) for c in made]
            out.write_part(index, parts, rows)


def _prompt_ids(
    problem: humaneval.Problem, loaded: LoadedModel, prompts: Prompts
) -> tuple[int, ...]:
    """BOS, the wrapper and the prefilled response, encoded apart as in training."""
    prompt, prefill = prompts.humaneval(problem.prompt)
    tokenizer = loaded.tokenizer
    return tuple(tokenizer.with_bos(tokenizer.encode(prompt)) + tokenizer.encode(prefill))


def judge_folder(
    problems: list[humaneval.Problem], out: StageFolder, evaluation: EvaluationSettings
) -> dict[str, Any]:
    """Run the folder's completions in the sandbox; writes verdicts.jsonl and results.json."""
    by_id = {problem.task_id: problem for problem in problems}
    rows = list(out.read_all(BenchmarkCompletion))
    programs = [
        (row.task_id, row.sample, humaneval.program(by_id[row.task_id], row.completion))
        for row in rows
    ]
    ends = Counter(f"finish_{row.finish_reason}" for row in rows)
    empty = sum(not row.completion.strip() for row in rows)
    found = judge_programs(problems, programs, out.path, evaluation)
    return {**found, "completions": {"empty": empty, **dict(sorted(ends.items()))}}


def judge_programs(
    problems: list[humaneval.Problem],
    programs: list[tuple[str, int, str]],
    folder: Path,
    evaluation: EvaluationSettings,
) -> dict[str, Any]:
    """Verdicts of whole programs, written with their conditions; returns results.json's content."""
    humaneval.preflight(problems, evaluation)
    with track(len(programs), "judge", "programs") as advance:
        verdicts = humaneval.judge(problems, programs, evaluation, advance)
    return humaneval.write_results(folder, problems, verdicts, evaluation)


def heldout_loss(
    loaded: LoadedModel, prompts: Prompts, settings: Settings, corpus: StageFolder, role: str
) -> dict[str, float | int | None]:
    """Mean cross-entropy (nats a response token) on the pairs that nothing was trained on."""
    examples = [
        encode_example(
            loaded.tokenizer,
            prompts.instruct(pair.instruction),
            pair.response,
            settings.train.max_length,
        )
        for pair in heldout_pairs(corpus)
    ]
    found = mean_log_probs(loaded, examples, settings.scoring, silent) if examples else []
    tokens = sum(one.tokens for one in found)
    loss = -sum(one.total for one in found) / tokens if tokens else None
    log.info("heldout=%s loss=%s pairs=%d tokens=%d", role, loss, len(examples), tokens)
    return {"loss": loss, "pairs": len(examples), "tokens": tokens}


def _conditions(settings: Settings) -> Mapping[str, Any]:
    return {
        "max_new_tokens": settings.evaluation.max_new_tokens,
        "temperature": settings.evaluation.temperature,
        "num_samples": settings.evaluation.num_samples,
        "problems": f"every {settings.evaluation.every}. problem, from the first",
        "compute_dtype": settings.model.compute_dtype,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "code_version": code_version(),
    }
