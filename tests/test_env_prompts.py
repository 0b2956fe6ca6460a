"""Prompts drawn ahead are those that one draw after another gives, and so are the states that a checkpoint keeps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_gym.envs.prompts import AHEAD, PromptDraws, slot_generator

EVERY = np.ones(3, dtype=np.bool_)


def one_by_one(seed: int, slot: int, num_prompts: int, count: int) -> list[int]:
    generator = slot_generator(seed, slot)
    return [int(generator.integers(num_prompts)) for _ in range(count)]


@given(num_prompts=st.integers(1, 100_000), seed=st.integers(0, 2**40), count=st.integers(0, 2 * AHEAD + 3))
@settings(max_examples=30, deadline=None)
def test_a_block_is_what_single_draws_give(num_prompts: int, seed: int, count: int) -> None:
    draws = PromptDraws(3, num_prompts)
    draws.seed(seed, EVERY)
    taken = [draws.take(np.array([2]))[0] for _ in range(count)]
    assert taken == one_by_one(seed, 2, num_prompts, count)
    generator = slot_generator(seed, 2)
    for _ in range(count):
        generator.integers(num_prompts)
    assert draws.states()[2] == generator.bit_generator.state
    assert draws.states()[0] == slot_generator(seed, 0).bit_generator.state  # it has drawn nothing


def test_states_and_copies_go_on_where_they_were() -> None:
    draws, other = PromptDraws(3, 1000), PromptDraws(3, 1000)
    draws.seed(5, EVERY)
    other.seed(None, EVERY)
    for slots in ([0, 1, 2], [1], [1, 2]):
        draws.take(np.array(slots))
    other.restore(draws.states())
    again = copy.deepcopy(draws)
    slots = np.arange(3)
    expected = [draws.take(slots).tolist() for _ in range(AHEAD + 2)]
    assert [other.take(slots).tolist() for _ in range(AHEAD + 2)] == expected
    assert [again.take(slots).tolist() for _ in range(AHEAD + 2)] == expected
    assert [row[1] for row in expected] == one_by_one(5, 1, 1000, AHEAD + 5)[3:]


def test_seeds_count_for_the_slots_that_are_reset() -> None:
    draws = PromptDraws(3, 1000)
    draws.seed([7, 8, 9], EVERY)
    assert draws.take(np.arange(3)).tolist() == [one_by_one(seed, 0, 1000, 1)[0] for seed in (7, 8, 9)]
    draws.seed([1, None, 2], np.array([True, True, False]))
    expected = [one_by_one(1, 0, 1000, 1)[0], one_by_one(8, 0, 1000, 2)[1], one_by_one(9, 0, 1000, 2)[1]]
    assert draws.take(np.arange(3)).tolist() == expected
    with pytest.raises(ValueError, match="got 2 seeds for 3 environments"):
        draws.seed([1, 2], EVERY)
