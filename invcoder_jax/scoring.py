"""What a model thinks of given texts: P(Yes) after a prompt, log-probabilities of responses.

Prefill only; of the vocab's logits only two columns, or a few positions at a time, ever exist.
Usage: `yes_probabilities(loaded, [("a", prompt_ids)], settings.scoring)[0].yes_probability`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from invcoder_jax.errors import UserError
from invcoder_jax.model.decoder import Decoder
from invcoder_jax.model.sources import LoadedModel
from invcoder_jax.settings import ScoringSettings
from invcoder_jax.tokenization import Example

SHORTEST = 64  # tokens; shorter prompts are padded to it
CHUNK = 32  # positions whose logits over the whole vocab exist at once; divides every length


@dataclasses.dataclass(frozen=True)
class YesNoLogits:
    """The logits of "Yes" and "No" as the first token of a response (paper, section 4.3).

    yes_probability is the LM-score, exp(yes) / (exp(yes) + exp(no)).
    """

    id: str
    yes_logit: float
    no_logit: float
    yes_probability: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        gap = self.no_logit - self.yes_logit
        small = math.exp(-abs(gap))  # never overflows
        probability = small / (1 + small) if gap > 0 else 1 / (1 + small)
        object.__setattr__(self, "yes_probability", probability)


@dataclasses.dataclass(frozen=True)
class ResponseLogProb:
    """Log-probability (nats) of a response given its prompt, and its number of tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token; the perplexity is exp(-mean). nan for an empty response."""
        return self.total / self.tokens if self.tokens else math.nan


def prompt_fits(loaded: LoadedModel, tokens: Sequence[int]) -> bool:
    """Whether a prompt or example can be scored: 1 token or more, and no more than the context."""
    return 1 <= len(tokens) <= loaded.spec.context


def yes_probabilities(
    loaded: LoadedModel,
    prompts: Sequence[tuple[str, tuple[int, ...]]],
    settings: ScoringSettings,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[YesNoLogits]:
    """Of each (id, prompt), in their order, the logits behind the prompt's last token.

    UserError names a prompt that does not fit (see `prompt_fits`).
    """
    for name, tokens in prompts:
        _check_fits(loaded, tokens, f"prompt {name!r}")
    model, layout = loaded.model, loaded.model.layout
    words = loaded.tokenizer.yes_no()
    found: list[YesNoLogits | None] = [None] * len(prompts)
    texts = [tokens for _, tokens in prompts]
    with layout.active():
        for batch in _batches(texts, settings.rows, layout.batch_shards):
            logits_Bx2 = _logits_after(
                model,
                layout.put(batch.tokens_BxT, "batch"),
                layout.put(batch.lengths_B - 1, "batch"),
                token_ids=(words.yes_id, words.no_id),
            )
            pairs = jax.device_get(logits_Bx2).tolist()
            for index, (yes, no) in zip(batch.indices, pairs, strict=False):
                found[index] = YesNoLogits(prompts[index][0], yes, no)
            on_progress(len(batch.indices))
    return [one for one in found if one is not None]


def mean_log_probs(
    loaded: LoadedModel,
    examples: Sequence[Example],
    settings: ScoringSettings,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[ResponseLogProb]:
    """The log-probability of each example's response, EOS included, in the order of the examples.

    UserError names an example that does not fit (see `prompt_fits`).
    """
    for index, example in enumerate(examples):
        _check_fits(loaded, example.tokens, f"example {index}")
    model, layout = loaded.model, loaded.model.layout
    # The first token of a text has nothing before it that could predict it.
    starts = [max(example.prompt_length, 1) for example in examples]
    totals = [0.0] * len(examples)
    with layout.active():
        for batch in _batches([e.tokens for e in examples], settings.rows, layout.batch_shards):
            starts_B = np.zeros_like(batch.lengths_B)
            starts_B[: len(batch.indices)] = [starts[index] for index in batch.indices]
            totals_B = _response_log_probs(
                model,
                layout.put(batch.tokens_BxT, "batch"),
                layout.put(starts_B, "batch"),
                layout.put(batch.lengths_B, "batch"),
            )
            found = jax.device_get(totals_B).tolist()
            for index, total in zip(batch.indices, found, strict=False):
                totals[index] = total
            on_progress(len(batch.indices))
    counts = [len(e.tokens) - start for e, start in zip(examples, starts, strict=True)]
    return [ResponseLogProb(*one) for one in zip(totals, counts, strict=True)]


def _check_fits(loaded: LoadedModel, tokens: Sequence[int], what: str) -> None:
    if not prompt_fits(loaded, tokens):
        raise UserError(
            f"{what} has {len(tokens)} tokens; the model takes 1 to {loaded.spec.context}, "
            "shorten it or leave it out"
        )


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Texts scored at once; rows after the last index are padding of one token."""

    indices: list[int]
    tokens_BxT: np.ndarray
    lengths_B: np.ndarray


def _batches(texts: Sequence[Sequence[int]], rows: int, shards: int) -> Iterator[_Batch]:
    """All texts, longest first, `rows` at a time; the few last ones in fewer rows."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        wanted = min(rows, 1 << (len(indices) - 1).bit_length())
        count = -(-wanted // shards) * shards
        tokens_BxT = np.zeros((count, _padded_length(len(texts[indices[0]]))), np.int32)
        lengths_B = np.ones(count, np.int32)
        for row, index in enumerate(indices):
            tokens_BxT[row, : len(texts[index])] = texts[index]
            lengths_B[row] = len(texts[index])
        yield _Batch(indices, tokens_BxT, lengths_B)


def _padded_length(length: int) -> int:
    """The next of 64, 128, 192, 256, 320, ..., 512, 640, ...: four lengths an octave."""
    step = max(SHORTEST, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


@functools.partial(jax.jit, static_argnames="token_ids")
def _logits_after(
    model: Decoder, tokens_BxT: jax.Array, last_B: jax.Array, *, token_ids: tuple[int, ...]
) -> jax.Array:
    """Logits of `token_ids` behind each row's last token, float32 [B, len(token_ids)]."""
    hidden_BxTxD = model(tokens_BxT)
    pick = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
    hidden_BxD = jax.vmap(pick)(hidden_BxTxD, last_B)
    return model.logits_at(hidden_BxD, token_ids)


@jax.jit
def _response_log_probs(
    model: Decoder, tokens_BxT: jax.Array, starts_B: jax.Array, ends_B: jax.Array
) -> jax.Array:
    """Sum over tokens [start, end) of log p(token | tokens before it), float32 [B]."""
    hidden_BxTxD = model(tokens_BxT)
    target_BxT = jnp.roll(tokens_BxT, -1, axis=1)
    at_T = jnp.arange(1, tokens_BxT.shape[1] + 1)[None]
    counts_BxT = (at_T >= starts_B[:, None]) & (at_T < ends_B[:, None])

    def add_chunk(index: jax.Array, total_B: jax.Array) -> jax.Array:
        hidden_BxCxD, target_BxC, counts_BxC = (
            jax.lax.dynamic_slice_in_dim(x, index * CHUNK, CHUNK, axis=1)
            for x in (hidden_BxTxD, target_BxT, counts_BxT)
        )
        logits_BxCxV = model.logits(hidden_BxCxD)
        vocab_V = jnp.arange(model.spec.vocab)[None, None]
        picked_BxC = jnp.sum(
            jnp.where(vocab_V == target_BxC[..., None], logits_BxCxV, 0.0), axis=-1
        )
        log_prob_BxC = picked_BxC - jax.nn.logsumexp(logits_BxCxV, axis=-1)
        return total_B + jnp.sum(jnp.where(counts_BxC, log_prob_BxC, 0.0), axis=1)

    zeros_B = jnp.zeros(len(tokens_BxT), out_sharding=model.layout.sharding("batch"))
    return jax.lax.fori_loop(0, tokens_BxT.shape[1] // CHUNK, add_chunk, zeros_B)
