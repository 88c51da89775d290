"""JAX's own attention kernels, to compare ours with."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.compile.case import Case


def tpu_flash(
    batch: int = 1,
    length: int = 2048,
    heads: int = 4,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    causal: bool = True,
    block: int = 1024,
    key_block: int | None = None,
) -> Case:
    """`jax.experimental.pallas.ops.tpu.flash_attention`, with tiles of one size.

    `key_block` is how many keys the forward pass fetches at once, by default `block`. Of some fifteen tilings of the
    default shape each, libtpu 0.0.42 estimates the fewest cycles on v5e for the default when causal, and for
    `key_block=2048` when not.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    names = [
        "block_q",
        "block_k_major",
        "block_k",
        "block_q_major_dkv",
        "block_k_major_dkv",
        "block_k_dkv",
        "block_q_dkv",
    ]
    names += ["block_k_major_dq", "block_k_dq", "block_q_dq"]
    tiles = dict.fromkeys(names, min(block, length)) | {"block_k_major": min(key_block or block, length)}
    sizes = flash.BlockSizes(block_b=1, **tiles)

    def attend(query: Any, key: Any, value: Any) -> Any:
        return flash.flash_attention(query, key, value, causal=causal, sm_scale=head_dim**-0.5, block_sizes=sizes)

    shape = (batch, heads, length, head_dim)
    return attention_case(attend, shape, dtype, matmul_flops(batch, length, heads, head_dim, causal))


def tpu_flash_backward(block: int = 512, **parameters: Any) -> Case:
    """The gradient of `tpu_flash`, and the forward pass it needs."""
    return gradient(tpu_flash(block=block, **parameters))


def gpu_mha(
    batch: int = 1,
    length: int = 2048,
    heads: int = 4,
    head_dim: int = 128,
    dtype: str = "bfloat16",
    causal: bool = True,
    block: int = 128,
    backward_block: int = 32,
) -> Case:
    """`jax.experimental.pallas.ops.gpu.attention.mha`, on Triton, by default with the tiles it chooses."""
    from jax.experimental.pallas.ops.gpu import attention

    names = ["block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"]
    sizes = attention.BlockSizes(block_q=block, block_k=block, **dict.fromkeys(names, backward_block))

    def attend(query: Any, key: Any, value: Any) -> Any:
        return attention.mha(
            query, key, value, segment_ids=None, sm_scale=head_dim**-0.5, causal=causal, block_sizes=sizes
        )

    shape = (batch, length, heads, head_dim)
    return attention_case(attend, shape, dtype, matmul_flops(batch, length, heads, head_dim, causal))


def gpu_mha_backward(**parameters: Any) -> Case:
    """The gradient of `gpu_mha`, and the forward pass it needs."""
    return gradient(gpu_mha(**parameters))


def gradient(forward: Case) -> Case:
    """The gradient of a forward attention case by all its arguments: its 2 matmuls and 5 more."""

    def total(*arguments: Any) -> jax.Array:
        return forward.function(*arguments).astype(jnp.float32).sum()

    flops = None if forward.flops is None else forward.flops * 7 / 2
    return Case(jax.grad(total, tuple(range(len(forward.arguments)))), forward.arguments, flops)


def matmul_flops(batch: int, length: int, heads: int, head_dim: int, causal: bool) -> float:
    """Flops of the two matmuls of attention, over the pairs that are read."""
    pairs = length * (length + 1) // 2 if causal else length**2
    return 4.0 * batch * heads * pairs * head_dim


def attention_case(function: Callable[..., Any], shape: tuple[int, ...], dtype: str, flops: float) -> Case:
    """The case of a function of query, key and value of one shape."""
    return Case(function, (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),) * 3, flops)
