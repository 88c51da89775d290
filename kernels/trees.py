"""Dataclasses as pytrees."""

import dataclasses
from typing import Any, TypeVar

import jax

_Class = TypeVar("_Class", bound=type)


def register_dataclass(cls: _Class) -> _Class:
    """As `jax.tree_util.register_dataclass`, but for structures of two classes, which never compare equal.

    Those that jax makes do (0.10) where the fields are alike, although their hashes differ: a table of compiled
    functions may then give one class what was compiled for the other. Unflattening runs no `__init__`, as the leaves of
    a pytree may be anything. Fields whose metadata has "static" are no leaves.
    """
    fields = dataclasses.fields(cls)
    leaves = [field.name for field in fields if not field.metadata.get("static")]
    static = [field.name for field in fields if field.metadata.get("static")]

    def flatten(instance: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in leaves]
        return children, tuple(getattr(instance, name) for name in static)

    def unflatten(values: tuple[Any, ...], children: Any) -> Any:
        instance = object.__new__(cls)
        for name, value in (*zip(static, values, strict=True), *zip(leaves, children, strict=True)):
            object.__setattr__(instance, name, value)
        return instance

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls
