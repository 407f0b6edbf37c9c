"""A finetuning run from its first step to its last, through kills and restarts.

The folder gets `checkpoint/` (a model REF), `metrics.jsonl` (the same bytes however often the run
was stopped), `timings.jsonl` and `tensorboard/`. Usage:

    result = train(loaded, encoded, settings.train, epochs=2, seed=42, folder=folder)
"""

import contextlib
import dataclasses
import hashlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from invcoder_jax.artifacts import write_atomic
from invcoder_jax.checkpoint import Checkpoints, describe
from invcoder_jax.errors import Preempted, UserError
from invcoder_jax.model.decoder import params_of
from invcoder_jax.model.sources import LoadedModel
from invcoder_jax.progress import Advance, silent
from invcoder_jax.records import dump_line, parse_lines
from invcoder_jax.settings import TrainSettings, fingerprint
from invcoder_jax.training.data import Batch, Encoded, batches, batches_from
from invcoder_jax.training.optimizer import adafactor, learning_rate
from invcoder_jax.training.step import Metrics, TrainState, make_step, require_whole_shards

log = logging.getLogger(__name__)
LOG_EVERY = 50  # steps between two log lines
NAMED_EXAMPLES = 8  # ids in the message about a loss that is not finite


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run did; `leftover` rows did not fill a last batch."""

    steps: int
    final_loss: float
    examples: int
    cut: int
    leftover: int


def train(
    loaded: LoadedModel,
    encoded: Encoded,
    settings: TrainSettings,
    *,
    epochs: int,
    seed: int,
    folder: Path,
    on_progress: Advance = silent,
) -> TrainResult:
    """Train from the folder's last checkpoint on, or from `loaded`, whose weights are consumed.

    UserError when settings, data and folder do not fit or the loss is not finite; Preempted after
    SIGTERM, when the step in hand is finished and saved.
    """
    require_whole_shards(settings.microbatch, loaded.model.layout)
    steps = batches(encoded, settings, epochs=epochs, seed=seed)
    total, examples = len(steps), len(encoded.examples)
    leftover = examples * epochs - total * settings.batch
    identity = _identity(encoded, settings, epochs, seed)
    describe(folder / "checkpoint", dataclasses.asdict(loaded.spec), loaded.tokenizer)
    with Checkpoints(folder / "checkpoint", settings.keep_checkpoints) as checkpoints:
        start, loss = _found(checkpoints, identity)
        log.info(
            "steps=%d start=%d examples=%d epochs=%d leftover=%d",
            total, start, examples, epochs, leftover,
        )  # fmt: skip
        on_progress(start)
        if start < total:
            journal = Journal(folder, start, encoded, on_progress)
            with loaded.model.layout.active(), contextlib.closing(journal):
                _run(loaded, settings, steps, start, checkpoints, identity, journal)
            loss = journal.loss
    return TrainResult(total, loss, examples, encoded.cut, leftover)


def _run(
    loaded: LoadedModel,
    settings: TrainSettings,
    steps: grain.MapDataset,
    start: int,
    checkpoints: Checkpoints,
    identity: str,
    journal: "Journal",
) -> None:
    """Steps start + 1 to the last, with a checkpoint where one is due."""
    total, layout = len(steps), loaded.model.layout
    optimizer = adafactor()
    step = make_step(loaded.model, optimizer, learning_rate(settings, total), remat=True)
    state = _first_state(loaded, checkpoints, start, optimizer.init)
    with _sigterm() as stop:
        for number, batch in enumerate(batches_from(steps, start), start + 1):
            journal.expect(batch)
            tokens = layout.put(batch.tokens_AxMxT, None, "batch", "length")
            weights = layout.put(batch.weights_AxMxT, None, "batch", "length")
            state, metrics = step(state, tokens, weights)
            journal.follow(number, batch, metrics)
            if stop.is_set() or number == total or number % settings.checkpoint_every == 0:
                journal.catch_up()  # before the save: metrics on disk never lack a saved step
                meta = {"identity": identity, "loss": journal.loss}
                checkpoints.save(number, state.params, state.opt_state, meta)
                if stop.is_set():
                    raise Preempted(f"stopped at training step {number} of {total}")
        if stop.is_set():
            raise Preempted("stopped after the last training step")


def _first_state(
    loaded: LoadedModel, checkpoints: Checkpoints, start: int, init: Callable[[Any], Any]
) -> TrainState:
    params = params_of(loaded.model)
    opt_state = jax.jit(init)(params)
    if start:
        structs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            (params, opt_state),
        )
        jax.tree.map(lambda x: x.delete(), (params, opt_state))  # room for what is restored
        params, opt_state = checkpoints.restore(start, *structs)
    return TrainState(params, opt_state, loaded.model.layout.put(np.int32(start)))


def _found(checkpoints: Checkpoints, identity: str) -> tuple[int, float]:
    """The step to go on from and its loss; UserError when the folder is another run's."""
    step = checkpoints.latest()
    if step is None:
        return 0, math.nan
    meta = checkpoints.meta(step)
    if meta["identity"] != identity:
        raise UserError(
            f"{checkpoints.folder} holds step {step} of a run with other data or settings; "
            "train into another folder, or delete this one"
        )
    return step, meta["loss"]


def _identity(encoded: Encoded, settings: TrainSettings, epochs: int, seed: int) -> str:
    """sha256 of all that decides which numbers a run's steps see."""
    digest = hashlib.sha256()
    for example in encoded.examples:
        digest.update(f"{example.id} {example.prompt_length} {len(example.tokens_T)} ".encode())
        digest.update(example.tokens_T.tobytes())
    names = ("batch", "learning_rate", "schedule", "warmup_steps")
    chosen = {name: getattr(settings, name) for name in names}
    return fingerprint({**chosen, "epochs": epochs, "seed": seed, "data": digest.hexdigest()})


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, in place of ending the process (main thread only)."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


class Journal:
    """Reads each step's metrics once the next step is under way, checks them, keeps them in files.

    On a resume the files are cut back to the step that the run goes on from.
    """

    def __init__(self, folder: Path, start: int, encoded: Encoded, on_progress: Advance) -> None:
        from tensorboardX import SummaryWriter  # imports torch where torch is installed

        self.loss = math.nan  # of the last step that was read
        self._metrics_file, self._timings_file = folder / "metrics.jsonl", folder / "timings.jsonl"
        self._metrics = _lines_up_to(self._metrics_file, start)
        self._timings = _lines_up_to(self._timings_file, start)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._encoded, self._on_progress = encoded, on_progress
        self._pending: tuple[int, Batch, Metrics] | None = None
        self._shapes: set[tuple[int, ...]] = set()  # of batches whose program is compiled
        self._clock = time.monotonic()

    def expect(self, batch: Batch) -> None:
        """Say which batch comes next: before a program is compiled, all earlier steps are read."""
        if batch.tokens_AxMxT.shape not in self._shapes:
            self._read_pending()
        if self._pending is None:
            self._clock = time.monotonic()

    def follow(self, number: int, batch: Batch, metrics: Metrics) -> None:
        """Take the metrics of a step that was dispatched, and read those of the one before."""
        self._read_pending()
        self._pending = (number, batch, metrics)

    def catch_up(self) -> None:
        """Read all that was dispatched and bring the files up to date."""
        self._read_pending()
        write_atomic(self._metrics_file, "".join(self._metrics).encode())
        write_atomic(self._timings_file, "".join(self._timings).encode())
        self._board.flush()

    def close(self) -> None:
        """Let go of TensorBoard's file."""
        self._board.close()

    def _read_pending(self) -> None:
        if self._pending is None:
            return
        (number, batch, metrics), self._pending = self._pending, None
        values = {name: float(x) for name, x in vars(jax.device_get(metrics)).items()}
        now, before = time.monotonic(), self._clock
        self._clock = now
        self._require_finite(number, batch, values)
        self.loss = values["loss"]
        row = {
            "step": number,
            **values,
            "response_tokens": int(values["response_tokens"]),
            "tokens": batch.tokens,
            "padded_tokens": batch.tokens_AxMxT.size,
        }
        self._metrics.append(dump_line(row))
        self._keep_timing(number, batch, now - before)
        for name in ("loss", "learning_rate", "grad_norm"):
            self._board.add_scalar(name, values[name], number)
        if number % LOG_EVERY == 0:
            log.info(" ".join(f"{name}={value:.6g}" for name, value in row.items()))
        self._on_progress(1)

    def _keep_timing(self, number: int, batch: Batch, seconds: float) -> None:
        shape, rate = batch.tokens_AxMxT.shape, batch.tokens / seconds
        timing = {
            "step": number,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(rate, 1),
            "compiled": shape not in self._shapes,
        }
        self._shapes.add(shape)
        self._timings.append(dump_line(timing))
        self._board.add_scalar("tokens_per_second", rate, number)

    def _require_finite(self, number: int, batch: Batch, values: dict[str, float]) -> None:
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            return
        ids = [self._encoded.examples[row].id for row in batch.rows]
        more = f" and {len(ids) - NAMED_EXAMPLES} more" if len(ids) > NAMED_EXAMPLES else ""
        raise UserError(
            f"loss {values['loss']} and gradient norm {values['grad_norm']} at step {number} "
            f"(examples {', '.join(ids[:NAMED_EXAMPLES])}{more}) must be finite; lower "
            "train.learning_rate or look at these examples"
        )


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The lines of steps 1 to `step` of a file that this module wrote."""
    if not step or not path.exists():
        return []
    with path.open("rb") as file:
        rows = [row for _, row in parse_lines(file, str(path)) if row["step"] <= step]
    if len(rows) != step:
        log.warning("file=%s steps_found=%d steps_trained=%d", path, len(rows), step)
    return [dump_line(row) for row in rows]
