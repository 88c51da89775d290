"""BiFormer: parameters and multiply-adds of the paper, both stem layouts, routing given out, it learns."""

import math
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from jattn.models.biformer import BASE, SMALL, SWIN_TINY_LAYOUT, TINY, BiFormer, BiFormerConfig, multiply_adds

LITTLE = BiFormerConfig(
    depths=(1, 2), widths=(16, 32), top_k=(2, None), regions=2, head_width=8, classes=3, drop_path=0.5,
    access="gathered", implementation="reference",
)  # fmt: skip
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def shapes_of(config: BiFormerConfig) -> BiFormer:
    """A model without numbers."""
    return nnx.eval_shape(lambda: BiFormer(config, rngs=nnx.Rngs(0)))


def parameters(module: nnx.Module) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def traced(module: nnx.Module, *shape: int) -> int:
    """Multiply-adds of a module's program for an input of that shape."""
    graph, state = nnx.split(module)
    program = jax.make_jaxpr(lambda state, images: nnx.merge(graph, state)(images)[0])
    jaxpr = program(state, jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
    return products(dce_jaxpr(jaxpr, [True])[0])  # what no output needs is not run


def products(jaxpr: Any) -> int:
    """Multiply-adds of the matrix products and convolutions of a traced program, from their shapes."""
    total = 0
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            contracted, _ = equation.params["dimension_numbers"][0]
            total += out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += out * math.prod(kernel[axis] for axis in spec[1:])
        elif equation.primitive.name in ("scan", "while", "cond"):
            raise AssertionError(f"{equation.primitive.name}: how often is not in the shapes")
        total += sum(products(inner) for inner in jaxprs_in_params(equation.params))
    return total


@cache
def of_whole_and_blocks(config: BiFormerConfig) -> tuple[tuple[int, list[int]], tuple[int, list[int]]]:
    """Parameters and multiply-adds at 224 of a model with one block a stage, and of each of its blocks."""
    model = shapes_of(config)
    blocks = [stage[0] for stage in model.stages]
    sides = [(224 // 2 ** (2 + stage), width) for stage, width in enumerate(config.widths)]
    work = [traced(block, 1, side, side, width) for block, (side, width) in zip(blocks, sides, strict=True)]
    return (parameters(model), [parameters(block) for block in blocks]), (traced(model, 1, 224, 224, 3), work)


@pytest.mark.parametrize(
    ("config", "millions", "billions"),
    [(TINY, 13.1, 2.2), (SMALL, 25.5, 4.5), (BASE, 56.8, 9.8), (SWIN_TINY_LAYOUT, 28.4, 4.6)],
    ids=["T", "S", "B", "STL"],
)
def test_sizes_are_the_papers(config: BiFormerConfig, millions: float, billions: float) -> None:
    """Parameters within 1 %, multiply-adds at 224 within 3 % and exactly those of the traced program.

    Traced with gathered regions, where what is listed is all that is multiplied. Blocks of a stage are alike, so one of
    each is traced; T and S differ in their numbers alone.
    """
    one_each = replace(config, depths=(1,) * 4, access="gathered", implementation="reference")
    counts, work = (
        whole + sum((depth - 1) * block for depth, block in zip(config.depths, blocks, strict=True))
        for whole, blocks in of_whole_and_blocks(one_each)
    )
    assert counts == pytest.approx(millions * 1e6, rel=0.01)
    assert work == multiply_adds(config, 224) == pytest.approx(billions * 1e9, rel=0.03)
    if config is TINY:
        assert parameters(shapes_of(config)) == counts


def test_multiply_adds_of_sizes_that_need_padding_are_those_of_the_program() -> None:
    for config in (LITTLE, replace(LITTLE, swin_layout=True, position_kernel=None, regions=3)):
        assert traced(shapes_of(config), 1, 44, 44, 3) == multiply_adds(config, 44)


def lit(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Noise of 16 x 16, brighter in one of its quarters, and which."""
    which, noise = jax.random.split(key)
    labels = jax.random.randint(which, (count,), 0, 3)
    quarter = jax.nn.one_hot(labels, 4).reshape(count, 2, 2).repeat(8, axis=1).repeat(8, axis=2)
    return jax.random.normal(noise, (count, 16, 16, 3)) + quarter[..., None], labels


def test_learns_and_then_answers_image_by_image() -> None:
    """With paths dropped and batch statistics in training, without either in evaluation."""
    graph = nnx.graphdef(shapes_of(LITTLE))
    create = jax.jit(
        lambda: nnx.split(BiFormer(LITTLE, rngs=nnx.Rngs(0)), nnx.Param, ...)[1:], compiler_options=QUICKLY
    )
    parameters, others = create()
    optimiser = optax.adam(1e-2)
    moments = optimiser.init(parameters)

    @partial(jax.jit, compiler_options=QUICKLY)
    def step(parameters: Any, others: Any, moments: Any, key: jax.Array) -> Any:
        images, labels = lit(key, 16)

        def loss(parameters: Any) -> Any:
            model = nnx.merge(graph, parameters, others, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(model(images)[0], labels)
            return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

        (value, others), slope = jax.value_and_grad(loss, has_aux=True)(parameters)
        change, moments = optimiser.update(slope, moments)
        return optax.apply_updates(parameters, change), others, moments, value

    losses = []
    for key in jax.random.split(jax.random.key(1), 40):
        parameters, others, moments, value = step(parameters, others, moments, key)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.6 < np.mean(losses[:2])
    trained = nnx.merge(graph, parameters, others)
    trained.eval()
    evaluated, state = nnx.split(trained)
    run = jax.jit(lambda state, images: nnx.merge(evaluated, state)(images), compiler_options=QUICKLY)
    images, labels = lit(jax.random.key(7), 32)
    logits, routings = run(state, images)
    assert (logits.argmax(axis=-1) == labels).mean() > 0.8
    beside_others, _ = run(state, jnp.concatenate([images[:1], 3 * images[1:]]))
    np.testing.assert_allclose(beside_others[0], logits[0], atol=1e-4)
    assert [routing.lists.shape for routing in routings] == [(32, 4, 2), (32, 1, 1), (32, 1, 1)]


def test_a_dropped_path_is_dropped_for_a_whole_image() -> None:
    features = jnp.ones((64, 2, 2, 3))
    block = shapes_of(replace(LITTLE, depths=(1, 1))).stages[1][0]
    assert block.drop_path.rate == 0.5
    dropped = nnx.Dropout(block.drop_path.rate, broadcast_dims=block.drop_path.broadcast_dims, rngs=nnx.Rngs(0))
    kept = np.asarray(dropped(features)).reshape(64, -1)
    assert set(np.unique(kept)) == {0.0, 2.0}
    assert (kept == kept[:, :1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (16,)}, "depths, widths and top_k must have an entry a stage"),
        ({"head_width": 12}, r"head_width must divide all widths \(16, 32\); got 12"),
        ({"drop_path": 1.0}, "drop_path must be from 0 to below 1; got 1.0"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LITTLE, **options)
