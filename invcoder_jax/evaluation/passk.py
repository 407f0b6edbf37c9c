"""Unbiased pass@k (Chen et al. 2021, arXiv 2107.03374, eq. 1). Usage: `pass_at_k(10, 3, 1)`."""

import math
from collections.abc import Iterable


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): odds that k samples, drawn from n with c right, hold a right one."""
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} of {samples} samples, {passed} passed: k must lie in 1..samples and passed "
            "in 0..samples; draw more samples or ask for a smaller k"
        )
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean of pass@k over problems, each given as (samples, passed); 0.0 without a problem."""
    values = [pass_at_k(samples, passed, k) for samples, passed in counts]
    return sum(values) / len(values) if values else 0.0
