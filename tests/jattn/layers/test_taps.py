"""Taps: sites and their scopes, handlers that come and go, what a handler may return."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from jattn.layers.taps import Handler, asked, intercept, scope, tap, wanted


def double(x: jax.Array) -> jax.Array:
    with scope("layers", 3):
        x = tap("residual", x)
        with scope("attention"):
            if wanted("weights"):
                x = tap("weights", x + 0)
            x = tap("output", 2 * x)
    return tap("residual", x)


class Edits(Handler):
    def __init__(self, edits: dict) -> None:
        self.edits, self.sites = edits, []

    def __call__(self, site: str, value: jax.Array) -> jax.Array:
        self.sites.append(site)
        return self.edits[site](value) if site in self.edits else value

    def wants(self, site: str) -> bool:
        return site == "layers.3.attention.weights" and site in self.edits


def test_sites_are_named_by_scopes_and_edits_act() -> None:
    handler = Edits({})
    with intercept(handler):
        assert double(jnp.ones(())) == 2
    assert handler.sites == ["layers.3.residual", "layers.3.attention.output", "residual"]
    with intercept(Edits({"layers.3.residual": lambda x: x + 4, "layers.3.attention.weights": lambda x: x * 10})):
        assert double(jnp.ones(())) == 100


def test_a_handler_is_there_for_an_intercept_alone() -> None:
    outer, inner = Edits({}), Edits({})
    with intercept(outer):
        with intercept(inner), pytest.raises(ZeroDivisionError), scope("left by an error"):
            raise ZeroDivisionError
        tap("after", jnp.ones(()))
    tap("outside", jnp.ones(()))
    assert (outer.sites, inner.sites) == (["after"], [])
    assert asked("statistics") == ()
    assert not wanted("weights")


def test_handlers_inside_come_first() -> None:
    with intercept(Edits({"residual": lambda x: x + 1})), intercept(Edits({"residual": lambda x: 10 * x})):
        assert tap("residual", jnp.ones(())) == 11


def test_without_a_handler_and_with_one_that_looks_on_the_program_is_the_same() -> None:
    def plain(x: jax.Array) -> jax.Array:
        return 2 * x

    def watched(x: jax.Array) -> jax.Array:
        with intercept(Edits({})):
            return double(x)

    programs = [str(jax.make_jaxpr(function)(1.0)) for function in (plain, double, watched)]
    assert len(set(programs)) == 1


@pytest.mark.parametrize(
    ("site", "edit", "message"),
    [
        (
            "layers.3.residual",
            lambda x: x[None],
            r"layers.3.residual must stay float32 of shape \(\);.* shape \(1,\)",
        ),
        ("residual", lambda x: x.astype(jnp.bfloat16), r"residual must stay float32 .* returned bfloat16"),
    ],
)
def test_an_edit_that_changes_shape_or_dtype_is_named(site: str, edit: Callable, message: str) -> None:
    with intercept(Edits({site: edit})), pytest.raises(ValueError, match=message):
        double(jnp.ones(()))
