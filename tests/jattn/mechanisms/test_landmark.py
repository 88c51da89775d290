"""Landmark attention: its weights pair by pair, in one pass and in chunks, against loops in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jattn.mechanisms import (
    LandmarkAttention,
    LandmarkCache,
    attend_chunk,
    grouped_softmax,
    grouped_softmax_weights,
    insert_landmarks,
    is_landmark,
    landmark_attention,
    retrieve,
    strip_landmarks,
    target_mask,
)
from jattn.mechanisms.landmark import grouped_attention
from jattn.mechanisms.landmark_retrieval import reading_slots, scoring_slots
from jattn.models.decoder import Decoder, DecoderConfig

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LENGTH, BLOCK, HEADS, KV_HEADS, WIDTH = 38, 4, 4, 2, 6
SIZE = BLOCK + 1


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def row_by_definition(scores: np.ndarray, row: int, block: int) -> np.ndarray:
    """What the token reads, block by block: its own tokens compete with landmarks, whose shares their blocks divide."""
    size, own = block + 1, row // (block + 1)
    mine = [j for j in range(own * size, row + 1) if j % size < block]
    shares = softmax(scores[mine + [b * size + block for b in range(own)]])
    weights = np.zeros(len(scores))
    weights[mine] = shares[: len(mine)]
    for b in range(own):
        tokens = slice(b * size, b * size + block)
        weights[tokens] = shares[len(mine) + b] * softmax(scores[tokens])
    return weights


def arrays(length: int = LENGTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    query = 2 * rng.normal(size=(2, length, HEADS, WIDTH))
    return query, *(2 * rng.normal(size=(2, length, KV_HEADS, WIDTH)) for _ in range(2))


def by_weights(query: Any, key: Any, value: Any) -> jax.Array:
    """Attention by the quadratic weights."""
    key, value = (jnp.repeat(each, HEADS // KV_HEADS, axis=2) for each in (key, value))
    scores = jnp.einsum("bihw,bjhw->bhij", query, key) * WIDTH**-0.5
    weights = grouped_softmax_weights(scores, is_landmark(query.shape[1], BLOCK))
    return jnp.einsum("bhij,bjhw->bihw", weights, value)


@partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
def compiled_weights(scores: jax.Array, block: int) -> jax.Array:
    return grouped_softmax_weights(scores, is_landmark(len(scores), block))


def weights_of(scores: np.ndarray, block: int) -> np.ndarray:
    return np.asarray(compiled_weights(jnp.asarray(scores), block))


@pytest.mark.parametrize(("length", "block"), [(23, 4), (7, 1), (3, 5)])
def test_weights_are_the_definition(length: int, block: int) -> None:
    with jax.enable_x64(True):
        scores = 3 * np.random.default_rng(length).normal(size=(length, length))
        weights = weights_of(scores, block)
        want = np.stack([row_by_definition(scores[row], row, block) for row in range(length)])
        np.testing.assert_allclose(weights, want, atol=1e-14)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-14)
        np.testing.assert_array_equal(weights[:, np.arange(length) % (block + 1) == block], 0)
        np.testing.assert_array_equal(np.triu(weights, 1), 0)


def test_a_token_does_not_see_its_own_landmark_and_sees_others() -> None:
    with jax.enable_x64(True):
        scores = np.random.default_rng(0).normal(size=(23, 23))
        changed = scores.copy()
        changed[:, 9] += 5  # the landmark of tokens 5 to 9
        before, after = weights_of(scores, 4), weights_of(changed, 4)
        np.testing.assert_array_equal(before[:10], after[:10])
        assert (after[10:, 5:9].sum(axis=1) > before[10:, 5:9].sum(axis=1)).all()


def test_without_an_earlier_block_it_is_causal_softmax() -> None:
    with jax.enable_x64(True):
        scores = np.random.default_rng(0).normal(size=(23, 23))
        weights = weights_of(scores, 4)
        for row in range(4):
            np.testing.assert_allclose(weights[row, : row + 1], softmax(scores[row, : row + 1]), atol=1e-15)
        # The landmark itself reads the whole block.
        np.testing.assert_allclose(weights[4, :4], softmax(scores[4, :4]), atol=1e-15)


def test_blocks_of_one_token_with_its_score_on_the_landmark_are_softmax_over_tokens() -> None:
    with jax.enable_x64(True):
        plain = np.random.default_rng(0).normal(size=(4, 4))
        scores = np.repeat(np.repeat(plain, 2, axis=0), 2, axis=1)[:7, :7]
        weights = weights_of(scores, 1)[::2, ::2]
        for row in range(4):
            np.testing.assert_allclose(weights[row, : row + 1], softmax(plain[row, : row + 1]), atol=1e-15)


def test_derivative_of_the_grouped_softmax() -> None:
    """dv = S (g - Σ over the group of g S), group by group; nothing for what is in no group or may not be read."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        scores, cotangent = rng.normal(size=(3, 12)), rng.normal(size=(3, 12))
        scores[1, 4] = -np.inf
        groups = rng.integers(-1, 4, size=(3, 12))

        @partial(jax.jit, compiler_options=QUICKLY)
        def both(scores: Any, cotangent: Any) -> Any:
            shares, back = jax.vjp(lambda v: grouped_softmax(v, jnp.asarray(groups), 4), scores)
            return shares, back(cotangent)[0]

        shares, slope = both(scores, cotangent)
        want, want_shares = np.zeros((3, 12)), np.zeros((3, 12))
        for row in range(3):
            for group in range(4):
                inside = groups[row] == group
                if np.isfinite(scores[row][inside]).any():
                    want_shares[row, inside] = s = softmax(scores[row, inside])
                    want[row, inside] = s * (cotangent[row, inside] - (cotangent[row, inside] * s).sum())
        np.testing.assert_allclose(shares, want_shares, atol=1e-15)
        np.testing.assert_allclose(slope, want, atol=1e-15)


QUERIES = "jattn.mechanisms.landmark.QUERIES_ON_CPU"


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_one_pass_is_the_weights_with_all_derivatives(
    implementation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients and jvp(grad), under vmap and jit, grouped queries, an unfinished last block, several tiles."""
    monkeypatch.setattr(QUERIES, 9)
    with jax.enable_x64(True):
        at, along = map(jnp.asarray, arrays()), map(jnp.asarray, arrays(seed=1))
        at, along = tuple(at), tuple(along)

        def everything(attend: Any, at: Any, along: Any) -> Any:
            slope, bend = jax.jvp(jax.grad(lambda at: jnp.sin(attend(*at)).sum()), (at,), (along,))
            return attend(*at), slope, bend

        ours = jax.vmap(partial(landmark_attention, block=BLOCK, implementation=implementation))
        have = jax.jit(partial(everything, ours), compiler_options=QUICKLY)(at, along)
        want = jax.jit(partial(everything, by_weights), compiler_options=QUICKLY)(at, along)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), have, want)
        assert all(np.abs(slope).max() > 0.1 for slope in (*have[1], *have[2]))


@given(
    length=st.integers(1, 40), block=st.integers(1, 9), kv_heads=st.sampled_from([1, 2]), seed=st.integers(0, 99),
    queries=st.integers(3, 50),
)  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_at_once_is_block_by_block(length: int, block: int, kv_heads: int, seed: int, queries: int) -> None:
    """Output and log-sum-exp of own groups, which merge with further blocks, for blocks and tiles of any size."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(QUERIES, queries)
        rng = np.random.default_rng(seed)
        shapes = [(2, length, 2, 3), (2, length, kv_heads, 3), (2, length, kv_heads, 5)]
        at = [jnp.asarray(2 * rng.normal(size=shape)) for shape in shapes]
        attend = jax.jit(
            grouped_attention, static_argnums=3, static_argnames="implementation", compiler_options=QUICKLY
        )
        have, want = (attend(*at, block, implementation=each) for each in (None, "reference"))
        for ours, theirs in zip(have, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_memory_of_the_gradient_is_linear_in_length() -> None:
    """Temporaries at 8,192 tokens in 32 blocks. To keep what is read of each block would take 32 arrays, not 16."""
    shape = jax.ShapeDtypeStruct((1, 8192, 1, 32), jnp.float32)
    slope = jax.grad(lambda *at: landmark_attention(*at, block=255).sum(), (0, 1, 2))
    used = jax.jit(slope, compiler_options=QUICKLY).lower(shape, shape, shape).compile().memory_analysis()
    assert used.temp_size_in_bytes < 24 * 8192 * 32 * 4


def turn(features: np.ndarray, position: int) -> np.ndarray:
    """Features d and d + width/2 turned by 10000^(-2 d / width) position."""
    half = WIDTH // 2
    angles = position * 10000.0 ** (-2 * np.arange(half) / WIDTH)
    first, second = features[:half], features[half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )


def chunks_by_definition(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, chunk: int, top_k: int, retrieval: str
) -> np.ndarray:
    """Token by token: positions, weights of landmarks, choice, and one softmax over own tokens and landmarks."""
    output = np.zeros(query.shape)
    for sequence, start in np.ndindex(len(query), -(-query.shape[1] // chunk)):
        rows = range(start * chunk, min((start + 1) * chunk, query.shape[1]))
        cached = start * chunk // SIZE
        begin = min(cached, top_k + 1) * SIZE - cached * SIZE  # from place in the text to position
        recent = range(max(cached - top_k, 0), cached)
        free = int(cached > top_k)
        q = {(i, h): turn(query[sequence, i, h], i + begin) * WIDTH**-0.5 for i in rows for h in range(HEADS)}
        keys, values = (np.repeat(each[sequence], HEADS // KV_HEADS, axis=1) for each in (key, value))
        odds = np.zeros((len(rows), HEADS, cached))
        for n, h in np.ndindex(len(rows), HEADS):
            slots = [b - recent[0] + free if b in recent else 0 for b in range(cached)]
            marks = [turn(keys[b * SIZE + BLOCK, h], slot * SIZE + BLOCK) for b, slot in enumerate(slots)]
            odds[n, h] = softmax(np.array([q[rows[n], h] @ mark for mark in marks])) if marks else []
        if retrieval == "token":
            odds = np.broadcast_to(odds.max(axis=1, keepdims=True), odds.shape)
        if retrieval == "head":
            odds = np.broadcast_to(odds.max(axis=0, keepdims=True), odds.shape)
        for n, h in np.ndindex(len(rows), HEADS):
            i = rows[n]
            own = i // SIZE
            scores = [q[i, h] @ turn(keys[j, h], j + begin) for j in range(own * SIZE, i + 1) if j % SIZE < BLOCK]
            reads = [values[j, h] for j in range(own * SIZE, i + 1) if j % SIZE < BLOCK]
            blocks = [(b, b * SIZE + begin) for b in range(cached, own)]
            for place, b in enumerate(sorted(np.argsort(odds[n, h])[::-1][:top_k])):
                blocks.append((b, (place + (free if b in recent else 0)) * SIZE))
            for b, position in blocks:
                inner = [q[i, h] @ turn(keys[b * SIZE + t, h], position + t) for t in range(SIZE)]
                scores.append(inner[-1])
                reads.append(softmax(np.array(inner[:-1])) @ values[b * SIZE : b * SIZE + BLOCK, h])
            output[sequence, i, h] = softmax(np.array(scores)) @ np.array(reads)
    return output


def in_chunks(query: Any, key: Any, value: Any, chunk: int, top_k: int, **options: Any) -> tuple[Any, Any]:
    def step(cache: LandmarkCache, tokens: Any) -> Any:
        chosen = retrieve(tokens[0], cache, top_k, options["retrieval"])
        output, cache = attend_chunk(*tokens, cache, chosen, implementation=options["implementation"])
        return cache, (output, chosen)

    cut = [np.moveaxis(each.reshape(2, -1, chunk, *each.shape[2:]), 1, 0) for each in (query, key, value)]
    empty = LandmarkCache.empty(2, 8, BLOCK, KV_HEADS, WIDTH, query.dtype)
    run = jax.jit(lambda tokens: jax.lax.scan(step, empty, tokens), compiler_options=QUICKLY)
    cache, (output, chosen) = run(tuple(map(jnp.asarray, cut)))
    return np.moveaxis(output, 0, 1).reshape(query.shape), (cache, chosen)


@pytest.mark.parametrize(
    ("retrieval", "implementation"),
    [("token_head", None), ("token_head", "xla"), ("token", "reference"), ("head", "reference")],
)
def test_chunks_are_the_definition(retrieval: str, implementation: str | None) -> None:
    """Chunks of 7 tokens, which end anywhere in blocks of 5, over 7 finished blocks of which 2 are read."""
    with jax.enable_x64(True):
        at = arrays(35)
        output, (cache, chosen) = in_chunks(*at, chunk=7, top_k=2, retrieval=retrieval, implementation=implementation)
        np.testing.assert_allclose(output, chunks_by_definition(*at, 7, 2, retrieval), atol=1e-12)
        assert (int(cache.count), int(cache.unfinished)) == (7, 0)
        assert chosen.shape == (5, 2, 1 if retrieval == "head" else 7, 1 if retrieval == "token" else HEADS, 2)
        assert (np.diff(chosen) > 0).all()
        # In the last chunk 5 blocks are finished: not everyone reads the same, nor only the last.
        assert len({tuple(pair) for pair in np.asarray(chosen)[-1].reshape(-1, 2)}) > 2


def test_with_all_blocks_read_chunks_are_the_one_pass() -> None:
    with jax.enable_x64(True):
        query, key, value = arrays(36)
        options = {"retrieval": "token_head", "implementation": "reference"}
        output, _ = in_chunks(query, key, value, chunk=9, top_k=8, **options)
        for head, row in np.ndindex(HEADS, 36):
            group = head * KV_HEADS // HEADS
            asking = turn(query[0, row, head], row) * WIDTH**-0.5
            scores = np.array([asking @ turn(key[0, place, group], place) for place in range(36)])
            want = row_by_definition(scores, row, BLOCK) @ value[0, :, group]
            np.testing.assert_allclose(output[0, row, head], want, atol=1e-12)


def test_chunks_keep_the_dtype_of_queries_and_the_cache_its_own() -> None:
    tokens = [jax.ShapeDtypeStruct(each.shape, jnp.bfloat16) for each in arrays(7)]

    def step(query: Any, key: Any, value: Any) -> Any:
        cache = LandmarkCache.empty(2, 3, BLOCK, KV_HEADS, WIDTH)
        return *attend_chunk(query, key, value, cache, retrieve(query, cache, 2)), cache

    output, after, before = jax.eval_shape(step, *tokens)
    assert (output.shape, output.dtype) == (tokens[0].shape, jnp.bfloat16)
    assert after == before


def test_reading_a_chunk_is_no_more_work_with_more_blocks_cached() -> None:
    """Once blocks are chosen; by the compiler's count of operations."""
    tokens = [jax.ShapeDtypeStruct((2, 7, heads, WIDTH), jnp.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    chosen = jax.ShapeDtypeStruct((2, 7, HEADS, 2), jnp.int32)

    def work(capacity: int) -> float:
        cache = jax.eval_shape(lambda: LandmarkCache.empty(2, capacity, BLOCK, KV_HEADS, WIDTH))
        program = jax.jit(attend_chunk).lower(*tokens, cache, chosen).compile()
        return program.cost_analysis()["flops"]

    few, many = work(8), work(512)
    assert many <= 1.01 * few


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_positions_stay_in_range_and_in_order(top_k: int) -> None:
    rng = np.random.default_rng(top_k)
    for count in (1, top_k, top_k + 1, top_k + 2, 40):
        slots = np.asarray(scoring_slots(count, 40, top_k))[:count]
        begin = min(count, top_k + 1)
        assert slots.min() >= 0
        assert slots.max() == begin - 1
        near = slots[-min(top_k, count) :]
        np.testing.assert_array_equal(begin - near, np.arange(len(near), 0, -1))  # at their true distance
        np.testing.assert_array_equal(slots[: -min(top_k, count)], 0)
        for _ in range(5):
            chosen = np.sort(rng.choice(count, min(top_k, count), replace=False))
            padded = np.append(chosen, np.arange(count, count + top_k - len(chosen)))
            places = np.asarray(reading_slots(jnp.asarray(padded), count))[: len(chosen)]
            assert (np.diff(places) > 0).all()
            assert places[-1] < begin
            far = chosen < count - top_k
            np.testing.assert_array_equal(places, np.arange(len(chosen)) + (~far if count > top_k else 0))


def test_landmarks_go_in_and_out() -> None:
    tokens = jnp.arange(2 * 11).reshape(2, 11)
    longer = insert_landmarks(tokens, 4, 99)
    np.testing.assert_array_equal(longer[0], [0, 1, 2, 3, 99, 4, 5, 6, 7, 99, 8, 9, 10])
    for length in (2, 9):
        there = insert_landmarks(tokens[:, :length], 3, 99)
        np.testing.assert_array_equal(there == 99, jnp.broadcast_to(is_landmark(there.shape[1], 3), there.shape))
        np.testing.assert_array_equal(strip_landmarks(there, 3), tokens[:, :length])
        # What is predicted is every token but the first, once.
        np.testing.assert_array_equal(there[0, 1:][target_mask(there.shape[1], 3)], tokens[0, 1:length])


def test_module_reads_in_chunks_what_it_reads_at_once() -> None:
    """As a decoder's attention, in float32; every block is retrieved. One chunk more than the cache holds gives NaN."""

    def build(width: int, heads: int, layer: int, rngs: nnx.Rngs) -> LandmarkAttention:
        return LandmarkAttention(width, heads, 3, 2, implementation="reference", rngs=rngs)

    @partial(jax.jit, compiler_options=QUICKLY)
    def both(features: Any) -> Any:
        model = Decoder(DecoderConfig(11, 16, 1, 2, 16, build), rngs=nnx.Rngs(0))
        layer, chunks = model.blocks[0].attention, features.reshape(4, 1, 4, 16)

        def step(cache: LandmarkCache, chunk: jax.Array) -> tuple[LandmarkCache, jax.Array]:
            read, cache = layer.read_chunk(chunk, cache)
            return cache, read

        _, read = jax.lax.scan(step, layer.empty_cache(1, 3), chunks)
        return layer(features), read.reshape(features.shape), model(jnp.zeros((1, 12), int))

    at_once, read, logits = both(jax.random.normal(jax.random.key(0), (1, 16, 16)))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(read[:, :12], at_once[:, :12], atol=1e-5)
    assert np.isnan(read[:, 12:]).all()


def test_wrong_arguments_are_named() -> None:
    query, key, value = map(jnp.asarray, arrays(10))
    cache = LandmarkCache.empty(2, 3, BLOCK, KV_HEADS, WIDTH)
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        landmark_attention(query, key, value, 0)
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        insert_landmarks(jnp.arange(3), 0, 9)
    with pytest.raises(ValueError, match="block and capacity must be at least 1; got 4 and 0"):
        LandmarkCache.empty(2, 0, BLOCK, KV_HEADS, WIDTH)
    with pytest.raises(ValueError, match="top_k must be from 0 to the cache's 3 blocks; got 4"):
        retrieve(query, cache, 4)
    with pytest.raises(ValueError, match="block must be at least 1 and top_k at least 0; got 4 and -1"):
        LandmarkAttention(16, 2, 4, -1, rngs=nnx.Rngs(0))


def test_wrong_choices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # what the library says itself
    query, key, value = map(jnp.asarray, arrays(10))
    with pytest.raises(ValueError, match="retrieval must be among token_head, token, head; got 'all'"):
        retrieve(query, LandmarkCache.empty(2, 3, BLOCK, KV_HEADS, WIDTH), 2, "all")  # pyright: ignore
    with pytest.raises(ValueError, match="query, key and value must agree in batch and length"):
        landmark_attention(query, key[:, :9], value, BLOCK)
