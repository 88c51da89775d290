"""The benchmark's tables list what they say they do, and it measures every case in both passes."""

import numpy as np
import pytest

from jattn.bench import block_sparse
from jattn.bench.block_sparse import Case


@pytest.mark.parametrize("case", [Case(64, 16, 2), Case(64, 16, 3, each_head=True)])
def test_the_listed_fraction_is_that_of_the_mask(case: Case) -> None:
    dense = np.asarray(case.table().dense(1, 8, case.length, case.length))
    np.testing.assert_allclose(dense.mean(), case.fraction)
    by_head = np.broadcast_to(dense, (1, 8, 64, 64))[0]
    assert (by_head == by_head[:1]).all() != case.each_head


def test_a_row_for_each_case_and_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_sparse, "CASES", (Case(128, 64, 1),))
    monkeypatch.setattr(block_sparse, "ROUNDS", 1)
    monkeypatch.setattr(block_sparse, "pin_to_one_core", lambda: None)
    rows = block_sparse.measure_block_sparse()
    assert [row["what"].split(", ")[-1] for row in rows] == ["forward", "forward and backward"]
    assert {row["against"] for row in rows} == {"0.5 of dense"}
