"""Contenders that write down when they are called."""

from collections.abc import Callable

import numpy as np
import pytest

from jattn.bench.interleave import interleave


def contenders(calls: list[str], names: str) -> dict[str, Callable[[], float]]:
    """Each measures how many calls there have been, of all contenders, before its own."""

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls) - 1)

    return {name: lambda name=name: measure(name) for name in names}


def test_order_is_reversed_every_other_round_after_one_warm_up_each() -> None:
    calls: list[str] = []
    interleave(contenders(calls, "abc"), rounds=3)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"


def test_warm_up_is_left_out_and_rounds_are_in_order() -> None:
    measured = interleave(contenders([], "ab"), rounds=3)
    assert list(measured) == ["a", "b"]
    np.testing.assert_array_equal(measured["a"], [2, 5, 6])  # calls 0 and 1 were the warm-up
    np.testing.assert_array_equal(measured["b"], [3, 4, 7])


def test_a_slow_spell_falls_on_both_sides_of_a_ratio() -> None:
    calls: list[str] = []

    def measure(name: str, cost: float) -> float:
        calls.append(name)
        return cost if len(calls) <= 6 else 10 * cost  # from the third round on, everything takes ten times as long

    measured = interleave({"a": lambda: measure("a", 2.0), "b": lambda: measure("b", 1.0)}, rounds=4)
    np.testing.assert_array_equal(measured["b"], [1, 1, 10, 10])
    np.testing.assert_array_equal(measured["a"] / measured["b"], 2)


def test_an_error_of_a_contender_is_not_swallowed() -> None:
    def fail() -> float:
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        interleave({"fail": fail}, rounds=1)


@pytest.mark.parametrize("rounds", [0, -1])
def test_rounds_below_one(rounds: int) -> None:
    calls: list[str] = []
    with pytest.raises(ValueError, match=f"rounds must be at least 1; got {rounds}"):
        interleave(contenders(calls, "a"), rounds)
    assert not calls
