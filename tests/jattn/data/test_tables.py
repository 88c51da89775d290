"""Real tables against the package they come from."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.utils import Bunch

from jattn.data import tables


def test_diabetes_is_scikit_learns() -> None:
    table = tables.diabetes()
    theirs = load_diabetes(scaled=False)
    assert table.features.shape == (442, 10)
    assert table.target.shape == (442,)
    assert table.names == ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
    np.testing.assert_array_equal(table.features, theirs.data)
    np.testing.assert_array_equal(table.target, theirs.target)
    # The first patient as Efron et al. 2004 print it in their table 1.
    np.testing.assert_allclose(table.features[0], [59, 2, 32.1, 101, 157, 93.2, 38, 4, 4.8598, 87])
    assert table.target[0] == 151


@pytest.mark.parametrize("part", ["data", "target"])
def test_altered_numbers_are_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    altered = load_diabetes(scaled=False)
    altered[part] = altered[part].copy()
    altered[part].flat[-1] = np.nextafter(altered[part].flat[-1], np.inf)

    def load(*, scaled: bool) -> Bunch:
        assert not scaled
        return altered

    monkeypatch.setattr(tables, "load_diabetes", load)
    with pytest.raises(ValueError, match=f"diabetes table must have SHA-256 {tables.DIABETES_SHA256}; scikit-learn"):
        tables.diabetes()
