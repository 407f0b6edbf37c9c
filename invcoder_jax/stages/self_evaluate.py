"""Stage self-evaluate: M's own P(Yes) for each candidate with its snippet (section 4.3)."""

import logging

from invcoder_jax.artifacts import StageFolder, write_json
from invcoder_jax.model.sources import LoadedModel
from invcoder_jax.progress import Advance, track
from invcoder_jax.prompts import Prompts, load_prompts
from invcoder_jax.records import Candidate, Score, Snippet
from invcoder_jax.scoring import prompt_fits, yes_probabilities
from invcoder_jax.settings import Settings
from invcoder_jax.stages.inputs import Counts, Inputs, load_for_serving

log = logging.getLogger(__name__)


def run(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Fill every missing part of `out` with Score rows; returns counts."""
    snippets, candidates = inputs.folder("preprocess"), inputs.folder("summarize")
    parts = candidates.parts
    missing = [index for index in range(parts) if not out.has_part(index, parts)]
    if missing:
        loaded = load_for_serving(inputs.models["teacher"], settings)
        prompts = load_prompts(settings.prompts.file)
        write_json(out.path / "yes_no.json", describe_yes_no(loaded))
        work = {index: candidates.read_part(index, parts, Candidate) for index in missing}
        with track(sum(map(len, work.values())), "self-evaluate", "candidates") as advance:
            for index, rows in work.items():
                blocks = {s.id: s.block for s in snippets.read_part(index, parts, Snippet)}
                scores = self_evaluate(rows, blocks, loaded, prompts, settings, advance)
                out.write_part(index, parts, scores)
    scored = sum(1 for _ in out.read_all(Score))
    return {"scored": scored, "too_long": candidates.manifest()["rows"] - scored}


def self_evaluate(
    candidates: list[Candidate],
    blocks: dict[str, str],
    loaded: LoadedModel,
    prompts: Prompts,
    settings: Settings,
    on_progress: Advance,
) -> list[Score]:
    """P(Yes) of each candidate whose prompt fits the model's context, in the order of the rows."""
    tokenizer = loaded.tokenizer
    asked: dict[str, tuple[int, ...]] = {}
    fitting: list[Candidate] = []
    for row in candidates:
        text = prompts.self_evaluate(row.instruction, blocks[row.snippet_id])
        ids = tuple(tokenizer.with_bos(tokenizer.encode(text)))
        if prompt_fits(loaded, ids):
            asked[row.id] = ids
            fitting.append(row)
        else:
            log.warning("candidate=%s left_out=too_long tokens=%d", row.id, len(ids))
            on_progress(1)
    answers = yes_probabilities(loaded, list(asked.items()), settings.scoring, on_progress)
    return [
        Score(
            candidate_id=row.id,
            snippet_id=row.snippet_id,
            sample=row.sample,
            yes_logit=answer.yes_logit,
            no_logit=answer.no_logit,
            yes_probability=answer.yes_probability,
        )
        for row, answer in zip(fitting, answers, strict=True)
    ]


def describe_yes_no(loaded: LoadedModel) -> dict[str, object]:
    """Which two tokens the score compares, and whether a word is more than its first token."""
    found = loaded.tokenizer.yes_no()
    several = [
        word
        for word, tokens in (("Yes", found.yes_tokens), ("No", found.no_tokens))
        if len(tokens) > 1
    ]
    return {
        "yes_id": found.yes_id,
        "no_id": found.no_id,
        "yes_tokens": list(found.yes_tokens),
        "no_tokens": list(found.no_tokens),
        "first_token_only": several,
    }
