"""What the kernels' tests share."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def unchecked_annotations() -> Iterator[None]:
    """Leave a wrong argument to the library's own checks, as it is outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
