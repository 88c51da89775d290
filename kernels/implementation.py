"""The implementations of attention, by name."""

NAMES = ("reference", "xla")


def check_name(implementation: str | None) -> None:
    """Raise ValueError unless it names an implementation, or is None for the platform's own."""
    if implementation is not None and implementation not in NAMES:
        raise ValueError(f"implementation must be None or one of {', '.join(NAMES)}; got {implementation!r}")
