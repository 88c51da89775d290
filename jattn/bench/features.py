"""Which derivatives peers' attention has, and whether they are right: tried, not read from documentation.

Causal attention of 128 tokens, 2 heads of 32, float32, against dense attention in float64. Pallas kernels run in the
interpreter. What is not installed is left out.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels
from kernels import masks

LENGTH, HEADS, WIDTH = 128, 2, 32
TOLERANCE = 1e-2
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))
log = logging.getLogger("jattn")
Attend = Callable[..., Any]


@dataclass(frozen=True)
class Contender:
    """Causal attention (query, key, value), and the same with a mask (rows, columns) or a bias of its shape."""

    name: str
    causal: Attend
    masked: Attend | None = None
    biased: Attend | None = None


def measure_features() -> list[dict[str, Any]]:
    """A row for each implementation: yes where a derivative is right, else what came instead."""
    rows = []
    for contender in _contenders():
        log.info("trying %s", contender.name)
        rows.append(_row(contender))
    rows += [row for row in [_torch_row()] if row]
    return rows


def _dense(query: Any, key: Any, value: Any, mask: Any = CAUSAL, bias: Any = 0.0) -> jax.Array:
    """By the definition; a row that may read nothing gives 0."""
    scores = jnp.einsum("bqhw,bkhw->bhqk", query, key) * WIDTH**-0.5 + bias
    weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), 0)
    return jnp.einsum("bhqk,bkhw->bqhw", weights, value)


def _contenders() -> Iterator[Contender]:
    for name in ("xla", "gpu", "tpu"):
        attend = partial(kernels.attention, implementation=name, tiles=kernels.Tiles(32, 128 if name == "tpu" else 32))
        yield Contender(
            f"jattn {name}",
            partial(attend, mask=masks.Causal("start")),
            lambda q, k, v, mask, attend=attend: attend(q, k, v, mask=mask),
            lambda q, k, v, bias, attend=attend: attend(q, k, v, bias=bias, mask=masks.Causal("start")),
        )
    theirs = partial(jax.nn.dot_product_attention, implementation="xla")
    yield Contender(
        "jax.nn xla",
        partial(theirs, is_causal=True),
        lambda q, k, v, mask: theirs(q, k, v, mask=mask),
        lambda q, k, v, bias: theirs(q, k, v, bias=bias, is_causal=True),
    )
    yield Contender("jax Pallas GPU mha", _pallas_mha())
    yield Contender("jax Splash (TPU)", _splash())
    try:
        import tokamax  # pyright: ignore[reportMissingImports]
    except Exception as error:  # not installed, or beside a version of typeguard that it cannot live with
        log.warning("left out tokamax, which cannot be imported: %s", type(error).__name__)
        return
    for name in ("xla", "xla_chunked"):
        attend = partial(tokamax.dot_product_attention, implementation=name)
        yield Contender(
            f"tokamax {name}",
            partial(attend, is_causal=True),
            lambda q, k, v, mask, attend=attend: attend(q, k, v, mask=mask),
            lambda q, k, v, bias, attend=attend: attend(q, k, v, bias=bias, is_causal=True),
        )


def _pallas_mha() -> Attend:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from jax.experimental.pallas.ops.gpu import attention
    sizes = attention.BlockSizes(32, 32, 32, 32, 32, 32)

    def attend(query: Any, key: Any, value: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return attention.mha(
                query, key, value, None, sm_scale=WIDTH**-0.5, causal=True, block_sizes=sizes, interpret=True
            )

    return attend


def _splash() -> Attend:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = splash.MultiHeadMask([splash.CausalMask((LENGTH, LENGTH))] * HEADS)
        kernel: Any = splash.make_splash_mha_single_device(mask, interpret=True)

    def attend(query: Any, key: Any, value: Any) -> Any:
        of_heads = [jnp.moveaxis(array, -3, -2) for array in (query * WIDTH**-0.5, key, value)]
        output: Any = jax.vmap(kernel)(*of_heads)
        return jnp.moveaxis(output, -3, -2)

    return attend


def _numbers(count: int, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, LENGTH, HEADS, WIDTH)).astype(dtype) for _ in range(count)]


def _row(contender: Contender) -> dict[str, Any]:
    row: dict[str, Any] = {"implementation": contender.name}
    for name, transform in _TRANSFORMS.items():
        row[name] = _verdict(transform, contender.causal, _dense)
    dead = CAUSAL.copy()
    dead[7] = False

    def masked(attend: Attend, *arrays: Any) -> Any:
        def of_row(query: Any, key: Any, value: Any) -> Any:
            return attend(query, key, value, dead)[:, 7]

        return of_row(*arrays[:3]), jax.grad(lambda *a: jnp.sin(of_row(*a)).sum(), (0, 1, 2))(*arrays[:3])

    def biased(attend: Attend, *arrays: Any) -> Any:
        def loss(bias: Any) -> Any:
            return jnp.sin(attend(*arrays[:3], bias)).sum()

        shape = (1, HEADS, LENGTH, LENGTH)
        return jax.grad(loss)(jnp.asarray(np.random.default_rng(1).standard_normal(shape), arrays[0].dtype))

    row["masked row"] = _verdict(masked, contender.masked, lambda q, k, v, mask: _dense(q, k, v, mask))
    row["grad bias"] = _verdict(biased, contender.biased, lambda q, k, v, bias: _dense(q, k, v, bias=bias))
    return row


def _loss(attend: Attend) -> Callable[..., Any]:
    return lambda query, key, value: jnp.sin(attend(query, key, value)).sum()


def _gradient(attend: Attend) -> Callable[..., Any]:
    return jax.grad(_loss(attend), (0, 1, 2))


def _twice(attend: Attend, *arrays: Any) -> Any:
    def slope(*at: Any) -> Any:
        return sum(jnp.vdot(g, a) for g, a in zip(_gradient(attend)(*at), arrays[3:], strict=True))

    return jax.grad(slope, (0, 1, 2))(*arrays[:3])


def _mapped(attend: Attend, *arrays: Any) -> Any:
    return jax.vmap(_gradient(attend))(*(jnp.stack([array, 2 * array]) for array in arrays[:3]))


def _transposed(attend: Attend, *arrays: Any) -> Any:
    query, key, value, *_, pull = arrays
    return jax.linear_transpose(lambda value: attend(query, key, value), value)(pull)


_TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda attend, *a: _gradient(attend)(*a[:3]),
    "jvp": lambda attend, *a: jax.jvp(attend, a[:3], a[3:])[1],
    "jvp(grad)": lambda attend, *a: jax.jvp(_gradient(attend), a[:3], a[3:])[1],
    "grad(grad)": _twice,
    "vmap(grad)": _mapped,
    "transpose": _transposed,
}


def _verdict(transform: Callable[..., Any], attend: Attend | None, dense: Attend) -> str:
    """Yes, or how wrong, or what was raised; "-" where there is no such argument."""
    if attend is None:
        return "-"
    try:
        have = _once(partial(transform, attend))(*_numbers(6, np.float32))
    except Exception as error:  # whatever it is, it is the answer
        return f"no: {type(error).__name__}"
    with jax.enable_x64(True):
        want = _once(partial(transform, dense))(*_numbers(6, np.float64))
    return _compare(have, want)


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled quickly rather than well: it runs once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def _compare(have: Any, want: Any) -> str:
    worst = 0.0
    for got, true in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        got, true = np.asarray(got, np.float64), np.asarray(true)
        worst = max(worst, float(np.abs(got - true).max() / max(np.abs(true).max(), 1)))
    return "yes" if worst <= TOLERANCE else f"wrong by {worst:.2g}"


def _torch_row() -> dict[str, Any] | None:
    torch: Any
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        log.warning("left out torch, which is not installed")
        return None

    def attend(query: Any, key: Any, value: Any) -> Any:
        moved = [array.transpose(-3, -2) for array in (query, key, value)]
        return torch.nn.functional.scaled_dot_product_attention(*moved, is_causal=True).transpose(-3, -2)

    def gradient(*arrays: Any) -> Any:
        return torch.func.grad(lambda *a: torch.sin(attend(*a)).sum(), argnums=(0, 1, 2))(*arrays)

    def twice(*arrays: Any) -> Any:
        def slope(*at: Any) -> Any:
            return sum((g * a).sum() for g, a in zip(gradient(*at), arrays[3:], strict=True))

        return torch.func.grad(slope, argnums=(0, 1, 2))(*arrays[:3])

    tried = {
        "grad": lambda *a: gradient(*a[:3]),
        "jvp": lambda *a: torch.func.jvp(attend, a[:3], a[3:])[1],
        "jvp(grad)": lambda *a: torch.func.jvp(gradient, a[:3], a[3:])[1],
        "grad(grad)": twice,
        "vmap(grad)": lambda *a: torch.func.vmap(gradient)(*(torch.stack([x, 2 * x]) for x in a[:3])),
    }
    row = {"implementation": "torch SDPA"}
    for name, transform in tried.items():
        try:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                have = transform(*map(torch.from_numpy, _numbers(6, np.float32)))
            leaves = have if isinstance(have, tuple) else (have,)
            with jax.enable_x64(True):
                want = _once(partial(_TRANSFORMS[name], _dense))(*_numbers(6, np.float64))
            row[name] = _compare([leaf.detach().numpy() for leaf in leaves], want)
        except Exception as error:  # whatever it is, it is the answer
            row[name] = f"no: {type(error).__name__}"
    return row | dict.fromkeys(("transpose", "masked row", "grad bias"), "-")
