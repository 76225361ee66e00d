"""How much is done at a time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bcs.actors.portions import Amount, portions


@given(st.lists(st.integers(0, 9)), st.integers(1, 9))
def test_only_a_single_item_exceeds_the_weight_of_a_portion(weights: list[int], most: int) -> None:
    parts = list(portions(weights, lambda weight: weight, most))
    assert [weight for part in parts for weight in part] == weights
    assert all(part and (sum(part) <= most or len(part) == 1) for part in parts)
    assert all(sum(one) + other[0] > most for one, other in pairwise(parts))


def test_a_failure_halves_the_limit_and_successes_raise_it_slowly() -> None:
    amount = Amount(100)
    amount.was_too_much(60)
    assert amount.now == 30
    for _ in range(10):
        amount.was_too_much(amount.now)
    assert amount.now == 1
    tries = 0
    while amount.now < 100:
        amount.was_taken()
        tries += 1
    assert tries > 50
    amount.was_taken()
    assert amount.now == 100
