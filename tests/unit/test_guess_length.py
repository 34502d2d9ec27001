# SPDX-License-Identifier: Apache-2.0
"""How many tokens are guessed, from what became of those before."""

from __future__ import annotations

import pytest

from lilliput.runtime.guess_length import COST_OF_TOKENS, PASSES_UNTIL_ANOTHER_TRY, GuessLength


def after(passes: int, accepted: int, most: int = 7, **options) -> GuessLength:
    """One whose last `passes` passes each had as many of their guesses come true, if there were so many."""
    length = GuessLength(0.5, **options)
    for _ in range(passes):
        guessed = max(length.choose(most), 1)
        length.learn(guessed, min(accepted, guessed))
    return length


def test_sure_guesses_fill_the_pass_and_no_more_than_is_allowed():
    assert after(40, accepted=7).choose(7) == 7
    assert after(40, accepted=7).choose(2) == 2
    assert after(40, accepted=99, most=99).choose(99) == len(COST_OF_TOKENS) - 1
    assert after(40, accepted=7).choose(0) == 0


def test_guesses_that_never_come_true_are_tried_once_in_a_while():
    length = after(40, accepted=0)
    asked = [length.choose(7) for _ in range(3 * PASSES_UNTIL_ANOTHER_TRY)]
    assert sum(asked) == asked.count(1) == 3


def test_what_turns_out_true_again_is_guessed_again():
    length = after(40, accepted=0)
    for _ in range(20 * PASSES_UNTIL_ANOTHER_TRY):
        guessed = length.choose(7)
        length.learn(guessed, guessed)
    assert length.choose(7) == 7


def test_those_behind_the_first_that_was_wrong_say_nothing():
    first, second = GuessLength(0.5), GuessLength(0.5)
    first.learn(7, 2)
    second.learn(3, 2)
    assert [first.choose(most) for most in range(8)] == [second.choose(most) for most in range(8)]


@pytest.mark.parametrize(("share", "guesses"), [(0.02, 0), (0.2, 1), (0.99, 7)])
def test_the_number_is_that_of_most_tokens_for_their_cost(share: float, guesses: int):
    assert GuessLength(share).choose(7) == guesses


def test_dear_guesses_are_fewer():
    assert GuessLength(0.9, 0.0).choose(7) > GuessLength(0.9, 0.3).choose(7) > GuessLength(0.9, 0.95).choose(7) == 0
