"""The host side of generation: many requests through a fixed number of slots.

Owns what is shared (one prefill a prompt), where a request decodes, when it is finished and what
its text is. The sequence of device programs is a function of the requests and settings alone.
Usage: `generate(loaded, [Request("a", prompt_ids)], SamplingSettings(), settings.generation)`.
"""

import bisect
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from invcoder_jax.errors import UserError
from invcoder_jax.generation import engine
from invcoder_jax.generation.engine import Completion, Request, Rows
from invcoder_jax.generation.responses import Response
from invcoder_jax.generation.sampling import identity, knobs_of, rule_of
from invcoder_jax.mesh import Layout
from invcoder_jax.model.cache import KVCache, Prefilled
from invcoder_jax.model.sources import LoadedModel
from invcoder_jax.settings import GenerationSettings, SamplingSettings
from invcoder_jax.tokenization import Tokenizer

log = logging.getLogger(__name__)

SLOT_MULTIPLE = 128  # cache slots are rounded up to it: TPU lanes, and fewer compiled shapes
PREFILL_TOKENS = 1024  # a prefill takes about this many a batch shard: enough to fill a TPU's MXU


def generate(
    loaded: LoadedModel,
    requests: Sequence[Request],
    sampling: SamplingSettings,
    settings: GenerationSettings,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[Completion]:
    """A completion of every request, in their order; `on_progress` gets the newly finished count.

    UserError names the first request that does not fit (see `fits`).
    """
    for request in requests:
        _check_fit(request, loaded.spec.context, sampling, settings)
    if not requests:
        return []
    model, layout = loaded.model, loaded.model.layout
    families = _families(requests, settings.prompt_buckets)
    shape = _shape(requests, families, layout.batch_shards, sampling, settings)
    log.info(
        "requests=%d prompts=%d rows=%d slots=%d",
        len(requests),
        len(families),
        shape.rows,
        shape.slots,
    )
    slots = _Slots(requests, loaded.tokenizer, sampling, shape)
    completions: dict[int, Completion] = {}
    with layout.active():
        knobs = jax.device_put(knobs_of(sampling), layout.sharding())
        cache = engine.empty_cache(
            spec=loaded.spec,
            layout=layout,
            rows=shape.rows,
            slots=shape.slots,
            dtype=model.compute_dtype,
        )
        supply = _prefilled(loaded, families, shape)
        while len(completions) < len(requests):
            for slot, ready in zip(slots.free(), supply, strict=False):
                cache = _insert(cache, ready, slot, layout)
                slots.fill(slot, ready)
            cache, emitted_CxB = engine.decode_steps(
                model,
                cache,
                engine.put_rows(slots.rows, layout),
                knobs,
                rule=rule_of(sampling),
                eos_ids=loaded.tokenizer.eos_ids,
                steps=settings.sync_steps,
            )
            finished = slots.absorb(jax.device_get(emitted_CxB))
            completions |= finished
            on_progress(len(finished))
    return [completions[index] for index in range(len(requests))]


def fits(
    request: Request,
    loaded: LoadedModel,
    sampling: SamplingSettings,
    settings: GenerationSettings,
) -> bool:
    """Whether `generate` takes this request: its prompt has a bucket, its whole text a context."""
    return not _misfit(request, loaded.spec.context, sampling, settings)


def _check_fit(
    request: Request, context: int, sampling: SamplingSettings, settings: GenerationSettings
) -> None:
    misfit = _misfit(request, context, sampling, settings)
    if misfit:
        raise UserError(f"request {request.id!r}: {misfit}")


def _misfit(
    request: Request, context: int, sampling: SamplingSettings, settings: GenerationSettings
) -> str:
    """Why the request can't be taken, and the mend; "" if it can."""
    prompt, forced = len(request.prompt), len(request.forced)
    buckets = settings.prompt_buckets
    if not prompt:
        return "its prompt has no tokens; give at least one, a BOS for instance"
    if prompt > buckets[-1]:
        return (
            f"its prompt of {prompt} tokens exceeds the largest of generation.prompt_buckets "
            f"{buckets}; append a bucket of {prompt} or more, or shorten the prompt"
        )
    if prompt + forced + sampling.max_new_tokens > context:
        return (
            f"prompt {prompt} + forced {forced} + max_new_tokens {sampling.max_new_tokens} tokens "
            f"exceed the model's context of {context}; lower max_new_tokens or shorten the prompt"
        )
    return ""


@dataclasses.dataclass(frozen=True)
class _Family:
    """Requests with one prompt; `prefix` is what they share of prompt and forced tokens."""

    prefix: tuple[int, ...]
    bucket: int
    members: tuple[int, ...]


def _families(requests: Sequence[Request], buckets: Sequence[int]) -> list[_Family]:
    """All requests by prompt, short buckets first, else in order of appearance.

    Forced tokens that all samples of a prompt share are prefilled with it, as far as the largest
    bucket goes; the others are fed one by one.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        members.setdefault(request.prompt, []).append(index)
    families = []
    for prompt, indices in members.items():
        shared = os.path.commonprefix([requests[i].forced for i in indices])  # of any sequences
        prefix = (*prompt, *shared)[: buckets[-1]]
        bucket = buckets[bisect.bisect_left(buckets, len(prefix))]
        families.append(_Family(prefix, bucket, tuple(indices)))
    return sorted(families, key=lambda family: family.bucket)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What decides which programs are compiled, beside the prompt buckets."""

    rows: int
    slots: int
    shards: int

    def prefill_rows(self, bucket: int) -> int:
        """Prompts that are prefilled at once."""
        each = 1 << (max(1, PREFILL_TOKENS // bucket).bit_length() - 1)  # a power of two
        return min(each * self.shards, self.rows)


def _shape(
    requests: Sequence[Request],
    families: Sequence[_Family],
    shards: int,
    sampling: SamplingSettings,
    settings: GenerationSettings,
) -> _Shape:
    """Few requests take few rows; slots hold the largest bucket and the longest response."""
    rows = min(settings.rows, _power_of_two_at_least(len(requests)))
    response = max(len(request.forced) for request in requests) + sampling.max_new_tokens
    return _Shape(
        rows=_round_up(rows, shards),
        slots=_round_up(families[-1].bucket + response, SLOT_MULTIPLE),
        shards=shards,
    )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _power_of_two_at_least(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A request whose prefix lies in row `source` of `prefilled`."""

    index: int
    prefix_length: int
    prefilled: Prefilled
    source: int


def _prefilled(loaded: LoadedModel, families: Sequence[_Family], shape: _Shape) -> Iterator[_Ready]:
    """Every request in the order of its family; prompts are prefilled when the first is asked."""
    start = 0
    while start < len(families):
        bucket = families[start].bucket
        count = shape.prefill_rows(bucket)
        batch = [f for f in families[start : start + count] if f.bucket == bucket]
        start += len(batch)
        tokens_BxT = np.zeros((count, bucket), np.int32)
        for row, family in enumerate(batch):
            tokens_BxT[row, : len(family.prefix)] = family.prefix
        prefilled = engine.prefill(loaded.model, loaded.model.layout.put(tokens_BxT, "batch"))
        for row, family in enumerate(batch):
            for index in family.members:
                yield _Ready(index, len(family.prefix), prefilled, row)


def _insert(cache: KVCache, ready: _Ready, slot: int, layout: Layout) -> KVCache:
    numbers = np.array([[ready.source], [slot]], np.int32)
    source_1, slot_1 = jax.device_put(tuple(numbers), layout.sharding())
    return engine.insert(cache, ready.prefilled, source_1, slot_1)


class _Slots:
    """The host's picture of the slots: the engine's Rows in numpy, and each slot's response."""

    def __init__(
        self,
        requests: Sequence[Request],
        tokenizer: Tokenizer,
        sampling: SamplingSettings,
        shape: _Shape,
    ) -> None:
        self.requests, self.tokenizer, self.sampling = requests, tokenizer, sampling
        self.indices = [0] * shape.rows  # the request in each slot that has a response
        self.responses: list[Response | None] = [None] * shape.rows
        self.rows: Rows[np.ndarray] = Rows(
            tokens_BxS=np.zeros((shape.rows, shape.slots), np.int32),
            known_B=np.zeros(shape.rows, np.int32),
            position_B=np.zeros(shape.rows, np.int32),
            prompt_B=np.zeros(shape.rows, np.int32),
            limit_B=np.zeros(shape.rows, np.int32),
            live_B=np.zeros(shape.rows, bool),
            identity_Bx3=np.zeros((shape.rows, 3), np.uint32),
        )

    def free(self) -> list[int]:
        """Slots without a response."""
        return [slot for slot, response in enumerate(self.responses) if response is None]

    def fill(self, slot: int, ready: _Ready) -> None:
        """Seat a request; its prefix's last token is fed again, to get the logits behind it."""
        request, rows = self.requests[ready.index], self.rows
        known = (*request.prompt, *request.forced)
        self.indices[slot], self.responses[slot] = ready.index, Response(request)
        rows.tokens_BxS[slot] = 0
        rows.tokens_BxS[slot, : len(known)] = known
        rows.known_B[slot] = len(known)
        rows.position_B[slot] = ready.prefix_length - 1
        rows.prompt_B[slot] = len(request.prompt)
        rows.limit_B[slot] = len(known) + self.sampling.max_new_tokens
        rows.live_B[slot] = True
        rows.identity_Bx3[slot] = identity(request.id, request.sample)

    def absorb(self, emitted_CxB: np.ndarray) -> dict[int, Completion]:
        """Take in one sync's tokens; the finished responses by request index, their slots freed."""
        finished = {}
        for slot, response in enumerate(self.responses):
            if response is None:
                continue
            column_C = emitted_CxB[:, slot]
            tokens = column_C[column_C != engine.NOTHING].tolist()
            self._advance(slot, tokens, steps=len(column_C))
            completion = response.take(tokens, self.tokenizer, self.sampling)
            if completion is not None:
                finished[self.indices[slot]] = completion
                self.responses[slot] = None
                self.rows.live_B[slot] = False
        return finished

    def _advance(self, slot: int, tokens: list[int], steps: int) -> None:
        """Note what was sampled, and that `steps` tokens were fed or all that are known."""
        rows, known = self.rows, int(self.rows.known_B[slot])
        rows.tokens_BxS[slot, known : known + len(tokens)] = tokens
        rows.known_B[slot] = known + len(tokens)
        rows.position_B[slot] = min(rows.position_B[slot] + steps, known + len(tokens) - 1)
