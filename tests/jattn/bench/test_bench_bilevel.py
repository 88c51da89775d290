"""The benchmark's two contenders come to the same variables, which are on their way to the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.bench import bilevel
from jattn.bilevel.toys import CONVEX_TOY_ANSWER


@pytest.mark.parametrize("size", [7, 100])
def test_iterations_by_hand_are_those_of_the_library(size: int) -> None:
    outer, inner = jax.jit(bilevel.of_library(size))(jnp.ones(size), jnp.ones((2, size)))
    x, y = bilevel.by_hand(size)
    np.testing.assert_allclose(outer, x, atol=1e-4)
    np.testing.assert_allclose(inner, y, atol=1e-4)
    assert np.abs(x / CONVEX_TOY_ANSWER - 1).max() < 0.03
    np.testing.assert_allclose(y.mean(axis=1), [0.7, -0.4], atol=0.03)


def test_the_table_has_the_bar_of_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bilevel, "SIZES", (100, 20))
    monkeypatch.setattr(bilevel, "ROUNDS", 1)
    monkeypatch.setattr(bilevel, "pin_to_one_core", lambda: None)
    rows = bilevel.measure_bilevel()
    assert [row["against"] for row in rows] == ["NumPy", "milliseconds", "NumPy"]
    assert rows[1]["bar"] == "≤ 5"
