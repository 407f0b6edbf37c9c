"""The three finetuning stages: base on D (teacher), base on D* (self), then on D (original).

Each starts with a fresh optimizer and schedule (paper, section 5); the pairs are published
once as a TFDS dataset beside the checkpoint and read from there.
"""

import logging
from collections.abc import Sequence

from invcoder_jax.artifacts import StageFolder
from invcoder_jax.corpora.tfds_builder import open_pairs, publish
from invcoder_jax.errors import UserError
from invcoder_jax.progress import track
from invcoder_jax.prompts import load_prompts
from invcoder_jax.records import Pair, SelectedPair
from invcoder_jax.settings import Settings
from invcoder_jax.stages.inputs import Counts, Inputs, load_for_training
from invcoder_jax.training.data import count_steps, examples_of
from invcoder_jax.training.loop import train

log = logging.getLogger(__name__)


def run_teacher(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Base on D: gives M."""
    pairs = list(inputs.folder("corpus").read_all(Pair))
    return _finetune(settings, inputs.models["base"], pairs, settings.train.teacher_epochs, out)


def run_self(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Base on D*."""
    rows = inputs.folder("decontaminate").read_all(SelectedPair)
    pairs = [Pair(r.id, r.instruction, r.response, "inverse-instruct") for r in rows]
    if not pairs:
        raise UserError(
            "D* is empty, no snippet has a selected instruction left; "
            "`invcoder status` shows which stage dropped the rows and why"
        )
    return _finetune(settings, inputs.models["base"], pairs, settings.train.self_epochs, out)


def run_original(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """The model of `run_self` on D: gives InverseCoder."""
    pairs = list(inputs.folder("corpus").read_all(Pair))
    return _finetune(settings, inputs.models["self"], pairs, settings.train.original_epochs, out)


def _finetune(
    settings: Settings, start: str, pairs: Sequence[Pair], epochs: int, out: StageFolder
) -> Counts:
    publish(pairs, out.path / "pairs")
    source = open_pairs(out.path / "pairs")
    loaded = load_for_training(start, settings)
    instruct = load_prompts(settings.prompts.file).instruct
    encoded = examples_of(source, loaded.tokenizer, settings.train.max_length, instruct)
    steps = count_steps(len(encoded.examples), epochs, settings.train.batch)
    log.info("finetune=%s start=%s examples=%d steps=%d", out.path.name, start, len(pairs), steps)
    with track(steps, out.path.name.split("_", 1)[1], "steps") as advance:
        result = train(
            loaded,
            encoded,
            settings.train,
            epochs=epochs,
            seed=settings.seed,
            folder=out.path,
            on_progress=advance,
        )
    return {
        "examples": result.examples,
        "cut_at_max_length": result.cut,
        "no_response_left": encoded.silent,
        "left_over_at_the_end": result.leftover,
        "steps": result.steps,
    }
