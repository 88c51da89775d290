"""What the tests of kernels share."""

import pytest


@pytest.fixture
def library_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a wrong argument to the library's own checks, as it is outside the tests."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
