"""The table of features tells right from wrong and from missing."""

from functools import partial

import jax
import jax.numpy as jnp

from jattn.bench.features import Contender, _dense, _row

YES = dict.fromkeys(["grad", "jvp", "jvp(grad)", "grad(grad)", "vmap(grad)", "transpose"], "yes")


def test_dense_attention_has_everything() -> None:
    contender = Contender("dense", _dense, _dense, lambda q, k, v, bias: _dense(q, k, v, bias=bias))
    assert _row(contender) == {"implementation": "dense", **YES, "masked row": "yes", "grad bias": "yes"}


def test_faults_of_peers_are_found() -> None:
    """No forward mode, the mean of values in a masked row, a bias that never trains: each has been seen."""
    reverse_only = jax.custom_vjp(_dense)
    reverse_only.defvjp(lambda *a: jax.vjp(_dense, *a), lambda back, pull: back(pull))

    def mean_of_values(query, key, value, mask):
        scores = jnp.where(mask, jnp.einsum("bqhw,bkhw->bhqk", query, key), -1e30)
        return jnp.einsum("bhqk,bkhw->bqhw", jax.nn.softmax(scores, axis=-1), value)

    def untrained(query, key, value, bias):
        return _dense(query, key, value, bias=jax.lax.stop_gradient(bias))

    row = _row(Contender("faulty", partial(reverse_only), mean_of_values, untrained))
    assert row["grad"] == "yes"
    assert row["jvp"] == "no: TypeError"
    assert row["masked row"].startswith("wrong by")
    assert row["grad bias"].startswith("wrong by")
