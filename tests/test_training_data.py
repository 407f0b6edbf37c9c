"""training/data.py: what carries loss, and which examples each step sees."""

import dataclasses

import numpy as np
import pytest

from configs import tiny
from invcoder_jax.corpora.tfds_builder import open_pairs, publish
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair
from invcoder_jax.settings import from_config
from invcoder_jax.tokenization import byte_tokenizer
from invcoder_jax.training.data import batches, batches_from, count_steps, epoch_order, examples_of

SETTINGS = dataclasses.replace(
    from_config(tiny.get_config()).train,
    batch=4, microbatch=2, max_length=24, length_buckets=(12, 24),
)  # fmt: skip
PAIRS = [Pair.make("ab"[: i % 3], "x" * (i % 7 + 1) + str(i)) for i in range(10)]


def encode(pairs=PAIRS, max_length=24):
    return examples_of(pairs, byte_tokenizer(), max_length, lambda text: f"<{text}>")


def test_loss_falls_on_the_response_and_its_eos_only():
    tokenizer = byte_tokenizer()
    batch = batches(encode(), SETTINGS, epochs=1, seed=0)[0]
    tokens, weights = batch.tokens_AxMxT.reshape(4, -1), batch.weights_AxMxT.reshape(4, -1)
    for row, index in enumerate(batch.rows):
        pair = PAIRS[index]
        wanted = [*pair.response.encode(), tokenizer.eos_ids[0]]
        assert tokens[row][weights[row] == 1].tolist() == wanted
        prompt = [tokenizer.bos_id, *f"<{pair.instruction}>".encode()]
        assert tokens[row][: len(prompt)].tolist() == prompt
        assert weights[row].sum() == len(wanted)
    assert batch.tokens == sum(len(encode().examples[i].tokens_T) for i in batch.rows)


def test_long_rows_are_cut_at_the_right_and_counted():
    encoded = encode(max_length=6)
    assert encoded.cut == sum(len(f"<{p.instruction}>{p.response}") + 2 > 6 for p in PAIRS) > 0
    assert max(len(example.tokens_T) for example in encoded.examples) == 6


def test_a_row_whose_prompt_fills_it_carries_no_loss_and_is_counted():
    encoded = encode([Pair.make("a" * 30, "x")] * 3 + [Pair.make("", "x")])
    assert (encoded.cut, encoded.silent) == (3, 3)
    assert batches(encoded, SETTINGS, epochs=1, seed=0)[0].weights_AxMxT.sum() == 2


def test_a_corpus_without_any_response_left_is_refused():
    with pytest.raises(UserError, match="all 4 examples lose their response.*24 tokens"):
        encode([Pair.make("a" * 30, "x")] * 4)


def test_steps_follow_the_epochs_permutations_without_a_gap():
    steps = batches(encode(), SETTINGS, epochs=3, seed=5)
    seen = [row for step in range(len(steps)) for row in steps[step].rows]
    order = np.concatenate([epoch_order(10, 5, epoch) for epoch in range(3)]).tolist()
    assert len(steps) == 7 and seen == order[:28]
    assert all(sorted(order[i : i + 10]) == list(range(10)) for i in (0, 10, 20))


def test_order_differs_between_epochs_and_seeds():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_resumed_run_reads_the_batches_that_an_undisturbed_one_reads():
    steps = batches(encode(), SETTINGS, epochs=3, seed=5)
    resumed = list(batches_from(steps, 4))
    assert len(resumed) == 3
    for number, batch in enumerate(resumed, 4):
        assert batch.rows == steps[number].rows
        np.testing.assert_array_equal(batch.tokens_AxMxT, steps[number].tokens_AxMxT)


def test_a_step_is_padded_to_the_smallest_bucket_that_holds_its_longest_row():
    short, long = [Pair.make("", "x")] * 4, [Pair.make("", "x" * 10)] * 4
    for pairs, length in ((short, 12), (long, 24), (short[:3] + long[:1], 24)):
        batch = batches(encode(pairs), SETTINGS, epochs=1, seed=0)[0]
        assert batch.tokens_AxMxT.shape == batch.weights_AxMxT.shape == (2, 2, length)


def test_too_little_data_is_refused_with_the_numbers():
    assert count_steps(10, 2, 7) == 2
    with pytest.raises(UserError, match="3 examples over 2 epochs.*batch of 8.*train.batch to 6"):
        count_steps(3, 2, 8)


def test_published_pairs_are_read_by_random_access(tmp_path):
    publish(PAIRS, tmp_path / "pairs")
    published = encode(open_pairs(tmp_path / "pairs"))
    for ours, theirs in zip(published.examples, encode().examples, strict=True):
        assert ours.id == theirs.id and ours.prompt_length == theirs.prompt_length
        np.testing.assert_array_equal(ours.tokens_T, theirs.tokens_T)
