"""Models put together from mechanisms and layers."""
