"""Training rows and their order: which examples a step sees is a function of the step alone.

An epoch is a permutation by (seed, epoch); a run is its epochs one after the other; step s takes
examples [s * batch, (s + 1) * batch). Nothing else is state, so a resume is exact. Usage:

    encoded = examples_of(pairs, tokenizer, 1024, prompts.instruct)
    step_3 = batches(encoded, settings.train, epochs=2, seed=42)[3]
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair
from invcoder_jax.settings import TrainSettings
from invcoder_jax.tokenization import Tokenizer, encode_example

log = logging.getLogger(__name__)
PREFETCHED_STEPS = 2  # padded by a thread of their own while the device works


class PairSource(Protocol):
    """Random access to pairs, as corpora.tfds_builder.open_pairs and any list give it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Pair: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedExample:
    """One training row: the tokens from `prompt_length` on carry loss."""

    id: str
    tokens_T: np.ndarray
    prompt_length: int


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A corpus in token ids; `cut` rows were longer than the model was to see.

    Of them, `silent` rows lost their whole response and carry no loss.
    """

    examples: Sequence[EncodedExample]
    cut: int
    pad_id: int
    silent: int


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """One optimizer step: A microbatches of M rows, padded on the right to T tokens.

    Weights are 1 on the response tokens and their EOS, else 0. `rows` index the encoded examples.
    """

    tokens_AxMxT: np.ndarray
    weights_AxMxT: np.ndarray
    rows: tuple[int, ...]
    tokens: int  # without padding


def examples_of(
    source: PairSource, tokenizer: Tokenizer, max_length: int, instruct: Callable[[str], str]
) -> Encoded:
    """Every pair as BOS + instruct(instruction) + response + EOS, cut at `max_length` tokens.

    UserError when no example has a response token left.
    """
    examples, cut, silent = [], 0, 0
    for index in range(len(source)):
        pair = source[index]
        example = encode_example(tokenizer, instruct(pair.instruction), pair.response, max_length)
        tokens_T = np.asarray(example.tokens, np.int32)
        examples.append(EncodedExample(pair.id, tokens_T, example.prompt_length))
        cut += example.cut
        silent += example.prompt_length >= len(tokens_T)
    log.info(
        "examples=%d max_length=%d cut=%d no_response_left=%d",
        len(examples), max_length, cut, silent,
    )  # fmt: skip
    if examples and silent == len(examples):
        raise UserError(
            f"all {silent} examples lose their response at train.max_length {max_length} tokens; "
            "raise train.max_length and train.length_buckets"
        )
    return Encoded(tuple(examples), cut, tokenizer.pad_id, silent)


def count_steps(examples: int, epochs: int, batch: int) -> int:
    """Whole steps in a run; UserError when there is not one."""
    steps = examples * epochs // batch
    if not steps:
        raise UserError(
            f"{examples} examples over {epochs} epochs do not fill one batch of {batch}; "
            f"set train.batch to {examples * epochs} or less, or give more data"
        )
    return steps


def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The example indices of one epoch in the order in which they are trained on."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


def batches(
    encoded: Encoded, settings: TrainSettings, *, epochs: int, seed: int
) -> grain.MapDataset:
    """Random access to the Batch of each step, from 0; its length is the number of steps."""
    examples = len(encoded.examples)
    steps = count_steps(examples, epochs, settings.batch)
    order = np.concatenate([epoch_order(examples, seed, epoch) for epoch in range(epochs)])
    rows = grain.MapDataset.source(order[: steps * settings.batch].tolist())
    return rows.batch(settings.batch).map(lambda chosen: collate(encoded, chosen, settings))


def batches_from(steps: grain.MapDataset, first: int) -> Iterator[Batch]:
    """The batches of steps first, first + 1, ..., prepared ahead of their use."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCHED_STEPS)
    return iter(steps.slice(slice(first, None)).to_iter_dataset(options))


def collate(encoded: Encoded, rows: Sequence[int], settings: TrainSettings) -> Batch:
    """The rows of one step, all padded to the smallest length bucket that holds the longest."""
    chosen = [encoded.examples[row] for row in rows]
    longest = max(len(example.tokens_T) for example in chosen)
    length = next(bucket for bucket in settings.length_buckets if bucket >= longest)
    tokens_BxT = np.full((len(chosen), length), encoded.pad_id, np.int32)
    weights_BxT = np.zeros((len(chosen), length), np.float32)
    for row, example in enumerate(chosen):
        end = len(example.tokens_T)
        tokens_BxT[row, :end] = example.tokens_T
        weights_BxT[row, max(example.prompt_length, 1) : end] = 1  # nothing predicts token 0
    shape = (len(chosen) // settings.microbatch, settings.microbatch, length)
    return Batch(
        tokens_AxMxT=tokens_BxT.reshape(shape),
        weights_AxMxT=weights_BxT.reshape(shape),
        rows=tuple(int(row) for row in rows),
        tokens=sum(len(example.tokens_T) for example in chosen),
    )
