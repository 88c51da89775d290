"""Dataclasses as pytrees: those of two classes differ, whatever their fields."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from kernels.trees import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class One:
    value: Any
    name: str = field(default="", metadata={"static": True})


@register_dataclass
@dataclass(frozen=True)
class Other:
    value: Any
    name: str = field(default="", metadata={"static": True})


def test_structures_of_two_classes_differ() -> None:
    one, other = jax.tree.structure(One(1.0)), jax.tree.structure(Other(1.0))
    assert one != other
    assert one == jax.tree.structure(One(2.0)) != jax.tree.structure(One(2.0, "named"))


def test_leaves_have_names_and_come_back() -> None:
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree))(One({"a": jnp.ones(2)}, "kept"))
    assert doubled.name == "kept"
    assert doubled.value["a"].tolist() == [2, 2]
    assert jax.tree_util.keystr(jax.tree.leaves_with_path(doubled)[0][0]) == ".value['a']"
