"""What a file says of its model's sizes, checked before anything is made of it."""

from collections.abc import Mapping
from typing import Any

LARGEST = 1 << 24
"""Of every size: a vocabulary, a width, a number of positions."""
MOST_LAYERS = 1024


class Fields:
    """Fields of a file's metadata by name, below a prefix."""

    def __init__(self, values: Mapping[str, Any], prefix: str = ""):
        self.values, self.prefix = values, prefix

    def size(self, name: str, default: int | None = None, most: int = LARGEST) -> int:
        """A whole number from 1.

        Raises:
          ValueError: it is missing, of another type or out of bounds.
        """
        value = self.values.get(self.prefix + name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"field {self.prefix + name!r} must be a whole number from 1 to {most}; got {value!r:.50}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0.

        Raises:
          ValueError: it is missing, of another type or not above 0.
        """
        value = self.values.get(self.prefix + name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(f"field {self.prefix + name!r} must be a number above 0; got {value!r:.50}")
        return float(value)

    def equals(self, name: str, expected: Any) -> None:
        """What must be as the model has it, where the file says it.

        Raises:
          ValueError: it is something else.
        """
        value = self.values.get(self.prefix + name, expected)
        if value != expected:
            raise ValueError(f"field {self.prefix + name!r} must be {expected!r}; got {value!r:.50}")
