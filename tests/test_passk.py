"""pass@k against the sum over all draws, which is its definition."""

import itertools

import pytest

from invcoder_jax.evaluation.passk import mean_pass_at_k, pass_at_k


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 2, 1), (7, 3, 2), (6, 0, 3), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample(samples, passed, k):
    draws = list(itertools.combinations(range(samples), k))
    share = sum(any(index < passed for index in draw) for draw in draws) / len(draws)
    assert pass_at_k(samples, passed, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_is_one_when_too_few_samples_are_wrong_to_fill_a_draw():
    assert pass_at_k(10, 8, 3) == 1.0


def test_pass_at_k_does_not_lose_digits_on_many_samples():
    assert pass_at_k(2000, 1, 1) == pytest.approx(1 / 2000, rel=1e-9)


@pytest.mark.parametrize(("samples", "passed", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0)])
def test_numbers_that_no_run_can_give_are_refused(samples, passed, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {samples} samples"):
        pass_at_k(samples, passed, k)


def test_the_mean_weighs_problems_equally_whatever_their_number_of_samples():
    assert mean_pass_at_k([(1, 1), (10, 0)], 1) == pytest.approx(0.5)
    assert mean_pass_at_k([], 1) == 0.0
