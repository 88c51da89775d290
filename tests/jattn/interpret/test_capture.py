"""Captures and edits on a small random model, against the model itself and dense attention written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import kernels
from jattn.interpret import (
    Add,
    CalibrateColumns,
    CalibrateSinks,
    DropColumns,
    Mean,
    OverrideRow,
    Resample,
    Rescale,
    Scale,
    Set,
    Where,
    capture,
    edit,
    mask_heads,
    mean_column_weights,
)
from jattn.models.language_model import LanguageModel, LanguageModelConfig

LAYERS, HEADS, WIDTH, LENGTH = 2, 4, 32, 12
CONFIG = LanguageModelConfig(50, WIDTH, LAYERS, HEADS, 48, kv_heads=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, LENGTH)))
NONE = jnp.zeros((LAYERS, HEADS), bool)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(CONFIG, rngs=nnx.Rngs(0))


@partial(jax.jit, static_argnames=("graph", "sites", "statistics"))
def compiled(graph, state, tokens, edits, sites, statistics):
    asked = {"layers.*.attention.statistics": statistics} if statistics else None
    captured = capture(nnx.merge(graph, state), tokens, sites=sites, edits=edits, statistics=asked)
    return captured.output, captured.sites


def run(model, tokens, edits=(), sites=(), statistics=()):
    return compiled(*nnx.split(model), tokens, edits, sites, statistics)


def logits(model, edits):
    return run(model, TOKENS, edits)[0]


def dense_read(weights, value):
    """Σ_j weights_ij v_j of every query head; value head h // 2."""
    return np.einsum("bhqk,bkhd->bqhd", np.asarray(weights, np.float64), np.repeat(np.asarray(value, np.float64), 2, 2))


ATTENTION = "layers.1.attention."
PARTS = tuple(ATTENTION + name for name in ("query", "key", "value", "weights", "head_output"))


@pytest.fixture(scope="module")
def parts(model):
    found = run(model, TOKENS, sites=PARTS)[1]
    return {name.rpartition(".")[2]: np.asarray(value, np.float64) for name, value in found.items()}


def test_capturing_changes_no_bit_and_finds_every_site(model) -> None:
    """Operation by operation, where no compiler fuses what is captured in another way than what is not."""
    plain = model(TOKENS)
    names = ("layers.*.residual", "layers.1.attention.*", "layers.*.weights", "layers.*.feed_forward.hidden", "logits")
    seen, sites = capture(model, TOKENS, sites=names)
    np.testing.assert_array_equal(seen, plain)
    np.testing.assert_array_equal(sites["logits"], plain)
    assert {"layers.0.residual", "layers.1.residual", *PARTS} <= set(sites)
    assert sites["layers.0.feed_forward.hidden"].shape == (3, LENGTH, 48)


def test_weights_are_those_that_heads_read_by(parts) -> None:
    scores = np.einsum("bqhd,bkhd->bhqk", parts["query"], np.repeat(parts["key"], 2, 2)) * (WIDTH / HEADS) ** -0.5
    scores = np.where(np.tril(np.ones((LENGTH, LENGTH), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(parts["weights"], weights, atol=1e-6)
    np.testing.assert_allclose(parts["head_output"], dense_read(weights, parts["value"]), atol=1e-5)


def test_statistics_are_those_of_the_weights(model, parts) -> None:
    output, sites = run(model, TOKENS, statistics=("entropy", "maximum", kernels.ColumnSums()))
    np.testing.assert_allclose(output, logits(model, ()), atol=1e-5)
    found = sites[ATTENTION + "statistics"]
    weights = parts["weights"]
    np.testing.assert_allclose(found.column_sums, weights.sum(axis=2), rtol=1e-5)
    np.testing.assert_array_equal(found.argmax, weights.argmax(axis=-1))
    entropy = -np.where(weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0).sum(axis=-1)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)


def test_statistics_of_long_text_are_made_in_linear_memory() -> None:
    """Every layer's and head's, of 4,096 tokens: no array of length squared, by the compiled program's own account."""
    model = nnx.eval_shape(lambda: LanguageModel(CONFIG, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    ask = {"layers.*.attention.statistics": ("entropy", kernels.ColumnSums(), kernels.WindowedDistance(64, "start"))}

    def told(state, tokens):
        return capture(nnx.merge(graph, state), tokens, statistics=ask).sites

    def temporary(length: int) -> int:
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return jax.jit(told).lower(state, tokens).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(1024), temporary(4096)
    assert long < 4.5 * short
    assert long < 4096**2 * 4


@pytest.mark.parametrize(
    ("operation", "want"),
    [
        (Set(2.0), lambda before: np.full_like(before, 2)),
        (Add(jnp.arange(float(WIDTH))), lambda before: before + np.arange(WIDTH)),
        (Scale(-3.0), lambda before: -3 * before),
        (Rescale(7.0), lambda before: 7 * before / np.linalg.norm(before, axis=-1, keepdims=True)),
        (Mean((0, 1)), lambda before: np.broadcast_to(before.mean((0, 1)), before.shape)),
        (Resample(jnp.array([2, 0, 1])), lambda before: before[[2, 0, 1]]),
    ],
)
def test_operations_where_the_selector_says(model, operation, want) -> None:
    site, names = "layers.1.residual", ("layers.*.residual",)
    before, after = run(model, TOKENS, sites=names)[1], None
    where = Where(positions=jnp.arange(LENGTH) > 7, batch=jnp.array([True, False, True]))
    after = run(model, TOKENS, [edit(site, operation, where)], names)[1]
    np.testing.assert_array_equal(after["layers.0.residual"], before["layers.0.residual"])
    chosen = np.zeros((3, LENGTH, 1), bool)
    chosen[[0, 2], 8:] = True
    expected = np.where(chosen, want(np.asarray(before[site])), before[site])
    np.testing.assert_allclose(after[site], expected, rtol=1e-6, atol=1e-6)


def test_zeros_have_no_direction_to_rescale_and_pass_no_gradient_that_is_not_a_number() -> None:
    for norm in (3.0, 0.0):
        value, gradient = jax.value_and_grad(lambda each, norm=norm: Rescale(norm)(each).sum())(jnp.zeros(4))
        assert value == 0
        assert jnp.isfinite(gradient).all()


def test_massive_activations_of_few_bits_are_rescaled_by_their_norms() -> None:
    activation = jnp.concatenate([jnp.full(1, 3e4), jnp.full(512, 8.0)]).astype(jnp.float16)
    norm = np.linalg.norm(np.asarray(activation, np.float64))
    np.testing.assert_allclose(Rescale(1.0)(activation), np.asarray(activation, np.float64) / norm, rtol=1e-6)


def test_zeroed_heads_are_rows_of_the_projection_zeroed(model) -> None:
    graph, state = nnx.split(model)
    other = nnx.merge(graph, state, copy=True)
    kernel = other.blocks[1].attention.output.kernel
    kernel[...] = kernel[...].at[8:16].set(0)
    have = logits(model, mask_heads(NONE.at[1, 1].set(True)))
    np.testing.assert_allclose(have, logits(other, ()), atol=1e-5)


def test_uniform_heads_read_the_running_mean(model, parts) -> None:
    found = run(model, TOKENS, mask_heads(NONE.at[1, 2].set(True), "uniform"), PARTS)[1][ATTENTION + "head_output"]
    mean = np.cumsum(parts["value"][:, :, 1], axis=1) / np.arange(1, LENGTH + 1)[:, None]
    np.testing.assert_allclose(found[:, :, 2], mean, atol=1e-5)
    np.testing.assert_allclose(found[:, :, 3], parts["head_output"][:, :, 3], atol=1e-6)


@pytest.mark.parametrize("mode", ["zero", "uniform", "mean", "resample"])
def test_masks_of_no_head_are_the_identity(model, mode) -> None:
    given = {
        "mean": {"means": jnp.ones((LAYERS, HEADS, WIDTH // HEADS))},
        "resample": {"order": jnp.array([1, 2, 0])},
    }
    have = logits(model, mask_heads(NONE, mode, **given.get(mode, {})))
    np.testing.assert_allclose(have, logits(model, ()), atol=1e-6)


def test_sweeping_heads_compiles_once(model) -> None:
    traced = 0

    @nnx.jit
    def swept(model, mask):
        nonlocal traced
        traced += 1
        return capture(model, TOKENS, edits=mask_heads(mask)).output

    found = [swept(model, NONE.at[layer, head].set(True)) for layer in range(LAYERS) for head in range(HEADS)]
    assert traced == 1
    assert len({np.asarray(each).tobytes() for each in found}) == LAYERS * HEADS


def test_one_query_head_reads_other_keys_than_those_it_shares(model, parts) -> None:
    other = jax.random.normal(jax.random.key(0), (3, LENGTH, HEADS, WIDTH // HEADS))
    for part in ("key", "value"):
        change = edit(f"{ATTENTION}{part}_of_head", Set(other), Where(heads=jnp.arange(HEADS) == 1))
        found = run(model, TOKENS, [change], PARTS)[1][ATTENTION + "head_output"]
        np.testing.assert_allclose(np.delete(found, 1, 2), np.delete(parts["head_output"], 1, 2), atol=1e-5)
        assert np.abs(found[:, 1:, 1] - parts["head_output"][:, 1:, 1]).max() > 0.01
    with pytest.raises(ValueError, match=r"heads must have the shape \(2,\) at layers.1.attention.key; got \(4,\)"):
        capture(model, TOKENS, edits=[edit(f"{ATTENTION}key", Set(0.0), Where(heads=jnp.ones(HEADS, bool)))])


def calibrated(weights, columns, factor):
    """The dense form of the paper: A' = factor A on sinks, and what is freed goes to the others by their shares."""
    columns = np.broadcast_to(columns[..., None, :], weights.shape)
    mass = (weights * columns).sum(axis=-1, keepdims=True)
    rest = weights + (1 - factor) * mass * weights / np.where(mass < 1, 1 - mass, 1)
    return np.where(mass >= 1, weights, np.where(columns, factor * weights, rest))


COLUMNS = np.zeros((3, HEADS, LENGTH), bool)
COLUMNS[:, 0, [3, 7]] = COLUMNS[1, 2, 5] = COLUMNS[:, 3, 0] = True


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_calibrated_columns_are_the_dense_form(model, parts, factor) -> None:
    change = edit(ATTENTION + "attention", CalibrateColumns(jnp.asarray(COLUMNS), factor))
    found = run(model, TOKENS, [change], PARTS)[1][ATTENTION + "head_output"]
    want = dense_read(calibrated(parts["weights"], COLUMNS, factor), parts["value"])
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_calibration_by_hand() -> None:
    """Row (0.5, 0.3, 0.2), sink 1, factor 0.4."""
    query = jnp.log(jnp.array([0.5, 0.3, 0.2])).reshape(1, 1, 1, 3)
    attention = CalibrateColumns(jnp.array([[[False, True, False]]]))(kernels.attention)
    read = attention(query, jnp.eye(3)[None, :, None], jnp.eye(3)[None, :, None], scale=1.0)
    np.testing.assert_allclose(read[0, 0, 0], [0.5 * 0.88 / 0.7, 0.12, 0.2 * 0.88 / 0.7], rtol=1e-5)


def test_dropped_columns_are_weights_normalised_anew(model, parts) -> None:
    columns = COLUMNS.copy()
    columns[..., 0] = False
    change = edit(ATTENTION + "attention", DropColumns(jnp.asarray(columns)))
    found = run(model, TOKENS, [change], PARTS)[1][ATTENTION + "head_output"]
    left = np.where(columns[..., None, :], 0, parts["weights"])
    want = dense_read(left / left.sum(axis=-1, keepdims=True), parts["value"])
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_sinks_are_found_by_the_mean_of_their_columns(model, parts) -> None:
    rows = LENGTH - np.arange(LENGTH)
    scores = parts["weights"].sum(axis=2) / rows
    threshold = float(np.median(scores[..., 1:]))
    heads = np.array([True, False, True, True])
    sinks = (scores > threshold) & (np.arange(LENGTH) > 0) & heads[:, None]
    for change in (
        CalibrateSinks(jnp.asarray(heads), threshold),
        CalibrateSinks(jnp.asarray(heads), threshold * LENGTH, relative=True),
    ):
        found = run(model, TOKENS, [edit(ATTENTION + "attention", change)], PARTS)[1][ATTENTION + "head_output"]
        want = dense_read(calibrated(parts["weights"], sinks, 0.4), parts["value"])
        np.testing.assert_allclose(found, want, atol=1e-5)


def test_column_means_of_uniform_attention_are_harmonic() -> None:
    inverse = 1 / np.arange(1, LENGTH + 1)
    sums = np.array([inverse[column:].sum() for column in range(LENGTH)])
    want = sums / (LENGTH - np.arange(LENGTH))
    np.testing.assert_allclose(mean_column_weights(jnp.asarray(sums)[None], LENGTH)[0], want, rtol=1e-6)


def test_overridden_rows_read_by_the_weights_given(model, parts) -> None:
    weights = jax.random.uniform(jax.random.key(1), (3, HEADS, LENGTH))
    row, heads = jnp.array([11, 3, 7]), jnp.array([True, False, True, False])
    change = edit(ATTENTION + "attention", OverrideRow(row, weights, heads))
    found = run(model, TOKENS, [change], PARTS)[1][ATTENTION + "head_output"]
    used = parts["weights"].copy()
    for text, place in enumerate(row):
        used[text, ::2, place] = np.asarray(weights)[text, ::2]
    np.testing.assert_allclose(found, dense_read(used, parts["value"]), atol=1e-5)


def test_gradients_pass_calibration_and_are_finite() -> None:
    shape = jax.random.normal(jax.random.key(2), (1, 6, 2, 4))
    columns = jnp.zeros((1, 2, 6), bool).at[:, :, 0].set(True)  # row 0 reads nothing but a sink

    def total(query):
        attention = CalibrateColumns(columns)(kernels.attention)
        return (attention(jnp.asarray(query), shape, shape, mask=kernels.masks.Causal("start")) ** 2).sum()

    check_grads(total, (shape,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_unknown_sites_are_errors_that_list_near_ones(model) -> None:
    with pytest.raises(ValueError, match=r"'layers.1.atention.query' is not in the model.*layers.1.attention.query"):
        capture(model, TOKENS, sites=["layers.1.atention.query"])
    with pytest.raises(ValueError, match=r"'layers.9.residual' is not in the model"):
        capture(model, TOKENS, edits=[edit("layers.9.residual", Set(0.0))])
    with pytest.raises(ValueError, match=r"layers.1.residual is no attention function"):
        capture(model, TOKENS, edits=[edit("layers.1.residual", DropColumns(jnp.asarray(COLUMNS)))])
    with pytest.raises(ValueError, match="is a function, which Set does not change"):
        capture(model, TOKENS, edits=[edit(ATTENTION + "attention", Set(0.0))])


def test_nothing_stays_switched_on(model) -> None:
    before = model(TOKENS)
    with pytest.raises(ValueError, match="not in the model"):
        capture(model, TOKENS, sites=["nowhere"], edits=mask_heads(~NONE))
    np.testing.assert_array_equal(model(TOKENS), before)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: mask_heads(NONE, "mean"), "means must be given for the mode mean"),
        (lambda: mask_heads(NONE, "zero", order=jnp.arange(3)), "order must be given for the mode resample"),
        (lambda: edit("a", DropColumns(jnp.ones((1, 1, 2), bool)), Where()), "where must be None for DropColumns"),
    ],
)
def test_bad_arguments_are_named(call, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()
