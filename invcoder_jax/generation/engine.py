"""The three device programs of generation: prefill prompts, insert them into slots, decode.

The device keeps the cache; the host keeps what it knows of each slot (Rows) and sends it along at
every sync, so no program has to edit it. Dims beside the legend's: C decode steps between syncs.
Usage: `cache, emitted_CxB = decode_steps(model, cache, rows, knobs, rule=..., ...)`.
"""

import dataclasses
import functools
from typing import Generic

import jax
import jax.numpy as jnp
import numpy as np

from invcoder_jax.generation.sampling import Array, Knobs, Rule, choose, row_keys
from invcoder_jax.mesh import Layout
from invcoder_jax.model import cache as caches
from invcoder_jax.model.cache import KVCache, Prefilled
from invcoder_jax.model.decoder import Decoder

NOTHING = -1  # in place of a token: the row sampled none in this step


@dataclasses.dataclass(frozen=True)
class Request:
    """A response to draw; `forced` are its first tokens, fed and not sampled."""

    id: str
    prompt: tuple[int, ...]
    sample: int = 0
    forced: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Completion:
    """A response: text (forced tokens included) up to its stop string, EOS or length limit.

    `token_ids` leave out EOS, and of a stopped text every token that is not wholly before the
    stop string; so they may say a few characters less than `text`, never more.
    """

    id: str
    sample: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str  # "stop" | "eos" | "length"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows(Generic[Array]):
    """What is known of each slot at a sync; position p of a row is slot p of its cache."""

    tokens_BxS: Array  # prompt, forced and sampled so far; zeros after them
    known_B: Array  # how many of them
    position_B: Array  # of the token that is fed next
    prompt_B: Array  # prompt length: where the response begins
    limit_B: Array  # `known` at which the row has reached max_new_tokens
    live_B: Array  # False: an empty slot
    identity_Bx3: Array  # sampling.identity


def put_rows(rows: Rows[np.ndarray], layout: Layout) -> Rows[jax.Array]:
    """The host's rows on the mesh, in one transfer."""
    return jax.device_put(rows, jax.tree.map(lambda _: layout.sharding("batch"), rows))


empty_cache = jax.jit(
    caches.empty_cache, static_argnames=("spec", "layout", "rows", "slots", "dtype")
)


@jax.jit
def prefill(model: Decoder, tokens_BxT: jax.Array) -> Prefilled:
    """Keys and values of right-padded prompts; slots after a prompt's end hold nothing of use."""
    return model.prefill(tokens_BxT)[1]


@functools.partial(jax.jit, donate_argnames="cache")
def insert(cache: KVCache, prefilled: Prefilled, source_1: jax.Array, slot_1: jax.Array) -> KVCache:
    """A row of `prefilled` copied into a slot; `prefilled` stays, for a prompt's other samples."""

    def pick(x_LxBxTxKxH: jax.Array) -> jax.Array:
        names = jax.typeof(x_LxBxTxKxH).sharding.spec
        return x_LxBxTxKxH.at[:, source_1].get(out_sharding=jax.P(None, None, *names[2:]))

    return caches.insert(cache, jax.tree.map(pick, prefilled), slot_1)


@functools.partial(jax.jit, static_argnames=("rule", "eos_ids", "steps"), donate_argnames="cache")
def decode_steps(
    model: Decoder,
    cache: KVCache,
    rows: Rows[jax.Array],
    knobs: Knobs[jax.Array],
    *,
    rule: Rule,
    eos_ids: tuple[int, ...],
    steps: int,
) -> tuple[KVCache, jax.Array]:
    """Up to `steps` tokens a row, fewer if every row ends; the cache, donated, changes in place.

    Gives emitted_CxB: the tokens sampled, EOS included, and NOTHING where a row sampled none.
    """
    layout, layers = model.layout, model.loop_layers()
    keys_B = row_keys(knobs.seed, rows.identity_Bx3)
    eos_E = jnp.asarray(eos_ids, jnp.int32)
    vocab_V = jnp.arange(model.spec.vocab, dtype=jnp.int32)

    def step(state: tuple) -> tuple:
        at, token_B, position_B, live_B, seen_BxV, cache, emitted_CxB = state
        hidden_BxD, cache = model.decode(token_B, position_B, cache, layers)
        step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, position_B + 1 - rows.prompt_B)
        sampled_B = live_B & (position_B + 1 >= rows.known_B)
        chosen_B = choose(
            model.logits(hidden_BxD), seen_BxV, step_keys_B, jnp.any(sampled_B), rule, knobs
        )
        next_B = jnp.where(sampled_B, chosen_B, _token_at(rows.tokens_BxS, position_B + 1))
        ended_B = sampled_B & (
            jnp.any(chosen_B[:, None] == eos_E[None], axis=1) | (position_B + 2 >= rows.limit_B)
        )
        if seen_BxV is not None:
            seen_BxV = seen_BxV | jax.reshard(
                next_B[:, None] == vocab_V[None], layout.spec("batch", "vocab")
            )
        emitted_CxB = jax.lax.dynamic_update_index_in_dim(
            emitted_CxB, jnp.where(sampled_B, chosen_B, NOTHING), at, axis=0
        )
        live_B = live_B & ~ended_B
        token_B = jnp.where(live_B, next_B, token_B)
        return at + 1, token_B, position_B + live_B, live_B, seen_BxV, cache, emitted_CxB

    def goes_on(state: tuple) -> jax.Array:
        at, _, _, live_B, *_ = state
        return (at < steps) & jnp.any(live_B)

    emitted_CxB = jnp.full(
        (steps, rows.known_B.size), NOTHING, jnp.int32, out_sharding=layout.sharding(None, "batch")
    )
    start = (
        jnp.int32(0),
        _token_at(rows.tokens_BxS, rows.position_B),
        rows.position_B,
        rows.live_B,
        _seen(rows, model.spec.vocab, layout) if rule.penalized else None,
        cache,
        emitted_CxB,
    )
    *_, cache, emitted_CxB = jax.lax.while_loop(goes_on, step, start)
    return cache, emitted_CxB


def _token_at(tokens_BxS: jax.Array, position_B: jax.Array) -> jax.Array:
    """Each row's token at its position; past the end, the last."""
    return jax.vmap(functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False))(
        tokens_BxS, position_B
    )


def _seen(rows: Rows[jax.Array], vocab: int, layout: Layout) -> jax.Array:
    """Which tokens each row has in its prompt or response, forced ones included; bool [B, V]."""

    def mark(tokens_S: jax.Array, known: jax.Array) -> jax.Array:
        ids_S = jnp.where(jnp.arange(tokens_S.size) < known, tokens_S, vocab)
        return jnp.zeros((vocab,), bool).at[ids_S].set(True, mode="drop")

    seen_BxV = jax.vmap(mark)(rows.tokens_BxS, rows.known_B)
    return jax.reshard(seen_BxV, layout.spec("batch", "vocab"))
