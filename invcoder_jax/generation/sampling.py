"""Which token comes next: repetition penalty, temperature, top-p, then Gumbel-max or argmax.

Order and meaning are Hugging Face's (RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
TopPLogitsWarper). Every row draws from a key of its own, so a text depends on no other row.
Usage: `tokens_B = choose(logits_BxV, seen_BxV, keys_B, drawing, rule, knobs)`.
"""

import dataclasses
import hashlib
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from invcoder_jax.settings import SamplingSettings

Array = TypeVar("Array", np.ndarray, jax.Array)  # on the host or on the mesh

PROBABILITY_BITS = 31  # a float32 in [0, 1] has its sign bit clear, so its bits order as it does


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which parts of sampling are compiled in; what is off costs nothing."""

    greedy: bool
    nucleus: bool
    penalized: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Knobs(Generic[Array]):
    """The numbers of sampling, as scalars that need no recompilation."""

    temperature: Array
    top_p: Array
    repetition_penalty: Array
    seed: Array


def rule_of(settings: SamplingSettings) -> Rule:
    """The parts of sampling that these settings need."""
    greedy = settings.temperature == 0
    return Rule(
        greedy=greedy,
        nucleus=settings.top_p < 1 and not greedy,
        penalized=settings.repetition_penalty != 1,
    )


def knobs_of(settings: SamplingSettings) -> Knobs[np.ndarray]:
    """The numbers of these settings, on the host; of the seed the low 32 bits count, as in JAX."""
    return Knobs(
        temperature=np.asarray(settings.temperature, np.float32),
        top_p=np.asarray(settings.top_p, np.float32),
        repetition_penalty=np.asarray(settings.repetition_penalty, np.float32),
        seed=np.asarray(settings.seed & 0xFFFFFFFF, np.uint32),
    )


def identity(request_id: str, sample: int) -> np.ndarray:
    """Three uint32 words that tell a response from every other: the id's hash (2), the sample."""
    digest = hashlib.sha256(request_id.encode("utf-8", "surrogatepass")).digest()
    return np.array([*np.frombuffer(digest[:8], ">u4"), sample & 0xFFFFFFFF], np.uint32)


def row_keys(seed: jax.Array, identity_Bx3: jax.Array) -> jax.Array:
    """One key a row, folded from the seed and the row's identity alone; typed keys [B]."""

    def fold(words_3: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        for word in words_3:
            key = jax.random.fold_in(key, word)
        return key

    return jax.vmap(fold)(identity_Bx3)


def penalize(logits_BxV: jax.Array, seen_BxV: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits of tokens in prompt or response: divided by the penalty, times it if negative."""
    penalized_BxV = jnp.where(logits_BxV < 0, logits_BxV * penalty, logits_BxV / penalty)
    return jnp.where(seen_BxV, penalized_BxV, logits_BxV)


def keep_nucleus(logits_BxV: jax.Array, top_p: jax.Array) -> jax.Array:
    """-inf for tokens that `top_p` of the probability beats; equal logits stay or go together.

    A token stays if all likelier ones together have less than top_p, which is Hugging Face's rule
    without its sort: the least probability that stays is found bit by bit (on XLA:CPU 20 times
    faster than sorting 49,152 logits), and the vocab may be sharded.
    """
    bits_BxV = jax.lax.bitcast_convert_type(jax.nn.softmax(logits_BxV, axis=-1), jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_Bx1, high_Bx1 = bounds  # too low a threshold, and one that keeps less than top_p above
        middle_Bx1 = low_Bx1 + (high_Bx1 - low_Bx1) // 2
        probability_BxV = jax.lax.bitcast_convert_type(bits_BxV, jnp.float32)
        above_Bx1 = jnp.sum(
            jnp.where(bits_BxV > middle_Bx1, probability_BxV, 0.0), axis=-1, keepdims=True
        )
        enough_Bx1 = above_Bx1 < top_p
        return (
            jnp.where(enough_Bx1, low_Bx1, middle_Bx1),
            jnp.where(enough_Bx1, middle_Bx1, high_Bx1),
        )

    likeliest_Bx1 = jnp.max(bits_BxV, axis=-1, keepdims=True)
    bounds = (jnp.full_like(likeliest_Bx1, -1), likeliest_Bx1)
    _, least_Bx1 = jax.lax.fori_loop(0, PROBABILITY_BITS, halve, bounds)
    return jnp.where(bits_BxV >= least_Bx1, logits_BxV, -jnp.inf)


def choose(
    logits_BxV: jax.Array,
    seen_BxV: jax.Array | None,
    keys_B: jax.Array,
    drawing: jax.Array,
    rule: Rule,
    knobs: Knobs[jax.Array],
) -> jax.Array:
    """The next token of each row, int32 [B]; of equal scores the lowest id wins.

    `seen` may be None if the rule does not penalize. Unless `drawing`, no row's token will be used
    and the noise is left out.
    """
    scores_BxV = logits_BxV.astype(jnp.float32)
    if seen_BxV is not None:
        scores_BxV = penalize(scores_BxV, seen_BxV, knobs.repetition_penalty)
    if not rule.greedy:
        scores_BxV = scores_BxV / knobs.temperature
        if rule.nucleus:
            scores_BxV = keep_nucleus(scores_BxV, knobs.top_p)
        # Behind a condition also because XLA:CPU would else draw the noise inside its argmax, which
        # is not vectorized: twice the time of both.
        scores_BxV = jax.lax.cond(drawing, _add_noise, lambda scores, _: scores, scores_BxV, keys_B)
    return jnp.argmax(scores_BxV, axis=-1).astype(jnp.int32)


def _add_noise(scores_BxV: jax.Array, keys_B: jax.Array) -> jax.Array:
    noise_BxV = jax.vmap(lambda key: jax.random.gumbel(key, scores_BxV.shape[1:]))(keys_B)
    return scores_BxV + jax.reshard(noise_BxV, jax.typeof(scores_BxV).sharding.spec)
