"""Stage summarize: M writes K candidate instructions for each snippet (paper, section 4.2)."""

import logging
from collections import Counter

from invcoder_jax.artifacts import StageFolder
from invcoder_jax.generation.batching import fits, generate
from invcoder_jax.generation.engine import Completion, Request
from invcoder_jax.model.sources import LoadedModel
from invcoder_jax.progress import Advance, track
from invcoder_jax.prompts import Prompts, load_prompts
from invcoder_jax.records import (
    MARK_EMPTY,
    MARK_LENGTH,
    MARK_PREFIX_ONLY,
    Candidate,
    Snippet,
    content_id,
)
from invcoder_jax.settings import Settings
from invcoder_jax.stages.inputs import Counts, Inputs, load_for_serving

log = logging.getLogger(__name__)


def run(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Fill every missing part of `out` with Candidate rows; returns counts by finish and mark."""
    snippets = inputs.folder("preprocess")
    parts = snippets.parts
    missing = [index for index in range(parts) if not out.has_part(index, parts)]
    if missing:
        loaded = load_for_serving(inputs.models["teacher"], settings)
        prompts = load_prompts(settings.prompts.file)
        work = {index: snippets.read_part(index, parts, Snippet) for index in missing}
        total = sum(map(len, work.values())) * settings.summarize.candidates
        with track(total, "summarize", "candidates") as advance:
            for index, rows in work.items():
                made = summarize(rows, loaded, prompts, settings, advance)
                out.write_part(index, parts, made)
    return _counts(out, snippets.manifest()["rows"], settings.summarize.candidates)


def summarize(
    snippets: list[Snippet],
    loaded: LoadedModel,
    prompts: Prompts,
    settings: Settings,
    on_progress: Advance,
) -> list[Candidate]:
    """K candidates for each snippet whose prompt fits the model; the others get none."""
    sampling = settings.summarize.sampling(settings.seed)
    tokenizer = loaded.tokenizer
    requests: list[Request] = []
    prefixes: list[str] = []
    fitting: list[Snippet] = []
    for snippet in snippets:
        ids = tuple(tokenizer.with_bos(tokenizer.encode(prompts.summarize(snippet.block))))
        drawn = [
            draw_prefix(prompts, snippet, sample, settings.seed)
            for sample in range(settings.summarize.candidates)
        ]
        made = [
            Request(snippet.id, ids, sample, tuple(tokenizer.encode(prefix)))
            for sample, prefix in enumerate(drawn)
        ]
        if all(fits(request, loaded, sampling, settings.generation) for request in made):
            requests += made
            prefixes += drawn
            fitting.append(snippet)
        else:
            log.warning("snippet=%s left_out=too_long tokens=%d", snippet.id, len(ids))
            on_progress(len(made))
    completions = generate(loaded, requests, sampling, settings.generation, on_progress)
    return [
        candidate_of(completion, prefix, settings.seed)
        for completion, prefix in zip(completions, prefixes, strict=True)
    ]


def draw_prefix(prompts: Prompts, snippet: Snippet, sample: int, seed: int) -> str:
    """A prefix drawn uniformly by (seed, snippet, sample), with the snippet's language tag."""
    draw = int(content_id("prefix", str(seed), snippet.id, str(sample)), 16)
    return prompts.prefix(draw % len(prompts.prefixes), snippet.language)


def candidate_of(completion: Completion, prefix: str, seed: int) -> Candidate:
    """The stripped text as a row, with a mark for each way in which it is weak."""
    text = completion.text.strip()
    marks = []
    if not text:
        marks.append(MARK_EMPTY)
    elif text == prefix.strip():
        marks.append(MARK_PREFIX_ONLY)
    if completion.finish_reason == "length":
        marks.append(MARK_LENGTH)
    return Candidate(
        id=content_id("candidate", completion.id, str(completion.sample), text),
        snippet_id=completion.id,
        sample=completion.sample,
        prefix=prefix,
        instruction=text,
        finish_reason=completion.finish_reason,
        marks=tuple(marks),
        seed=seed,
    )


def _counts(out: StageFolder, snippets: int, candidates: int) -> Counts:
    counts: Counter[str] = Counter()
    for row in out.read_all(Candidate):
        counts["candidates"] += 1
        counts[f"finish_{row.finish_reason}"] += 1
        counts.update(row.marks)
    counts["snippets_too_long"] = snippets - counts["candidates"] // candidates
    return dict(counts)
