"""What the settings of models, training and experiments have to keep to."""

from typing import Any


def at_least(least: int, settings: Any, *names: str) -> None:
    """Checks that each of those attributes is no less than that.

    Raises:
      ValueError: one is less; it is named.
    """
    for name in names:
        value = getattr(settings, name)
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
