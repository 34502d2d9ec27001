# SPDX-License-Identifier: Apache-2.0
import pytest

from lilliput.cli import values
from lilliput.errors import RecipeError


@pytest.mark.parametrize(
    ("words", "size"), [("5GB", 5 * 10**9), ("2 GiB", 2 * 2**30), ("1.5kB", 1500), ("1000b", 1000), ("3MiB", 3 * 2**20)]
)
def test_a_size_is_a_number_and_its_unit(words: str, size: int) -> None:
    assert values.parse_bytes(words) == size


def test_a_size_without_its_unit_is_refused_with_an_example() -> None:
    with pytest.raises(RecipeError, match=r"--split-max-size '5' is a number without a unit; .* such as 5GB"):
        values.parse_bytes("5", "--split-max-size")


@pytest.mark.parametrize("words", ["", "GB", "-5GB", "5 parsecs", "five"])
def test_what_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(RecipeError, match="is not a size"):
        values.parse_bytes(words, "--size")


@pytest.mark.parametrize("words", ["0", "1,,2", "two", "1;2"])
def test_counts_of_threads_are_positive_whole_numbers(words: str) -> None:
    with pytest.raises(RecipeError, match="such as 1,2"):
        values.thread_counts(words)
