"""How much the training loop costs over the least one could write by hand for the same model and data."""

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jattn.bench.interleave import interleave
from jattn.data.linear_prompts import LinearPrompts, Prompt, prompt_tokens, sample_prompts
from jattn.mechanisms import MultiHeadAttention
from jattn.runs import Experiment, Preset, open_run
from jattn.train import Generated, Schedule, fit

WORLD = LinearPrompts(5, 40, 0.1, 0.0, ((0, 5),))
BATCH = 256
ROUNDS = 7
SCHEDULE = Schedule(steps=1000, steps_per_dispatch=50, evaluate_every=500, checkpoint_every=500)


def measure_training() -> list[dict[str, Any]]:
    """Milliseconds a step, medians over interleaved rounds, and the loop's ratio to the faster bare loop.

    The loop is measured as it is used: metrics recorded, evaluated twice, checkpointed twice, guarded against
    non-finite values. Compiling is left out on all sides.
    """
    rows = []
    for heads, seeds in ((2, 1), (8, 5)):
        seconds = interleave(
            {
                "loop": partial(_loop_seconds, heads, seeds),
                "bare, one step a dispatch": _bare_seconds(heads, seeds, 1),
                "bare, scanned": _bare_seconds(heads, seeds, SCHEDULE.steps_per_dispatch),
            },
            ROUNDS,
        )
        bare = [name for name in seconds if name != "loop"]
        fastest = min(bare, key=lambda name: float(np.median(seconds[name])))
        ratios = seconds["loop"] / seconds[fastest]
        medians = {f"{name} (ms/step)": float(np.median(values)) * 1e3 for name, values in seconds.items()}
        spread = f"{np.median(ratios):.3f} [{ratios.min():.3f}, {ratios.max():.3f}]"
        rows.append({"model": f"{heads} heads, {seeds} seeds", **medians, f"loop / {fastest}": spread})
    return rows


def _build(heads: int, rngs: nnx.Rngs) -> MultiHeadAttention:
    return MultiHeadAttention(6, heads, 1, rngs=rngs)


def _loss(model: MultiHeadAttention, prompt: Prompt) -> tuple[jax.Array, dict[str, jax.Array]]:
    tokens, query = prompt_tokens(prompt)
    return jnp.mean((model(query, tokens)[:, 0] - prompt.target) ** 2), {}


class _Clock:
    """A tracker that notes when metrics come in."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None
        self.last = (0, 0.0)

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        if step and self.first is None:  # the first dispatch is over, and with it compiling
            self.first = (step, time.perf_counter())
        self.last = (step, time.perf_counter())

    def close(self) -> None: ...

    def seconds_per_step(self) -> float:
        assert self.first is not None
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])


def _loop_seconds(heads: int, seeds: int) -> float:
    clock = _Clock()
    experiment = Experiment("bench", "", None, {"bench": Preset(SCHEDULE, "")}, lambda config, run: None)
    with (
        tempfile.TemporaryDirectory() as directory,
        open_run(experiment, "bench", SCHEDULE, Path(directory) / "run", trackers=[lambda _: clock], quiet=True) as run,
    ):
        fit(
            run, "train", build=partial(_build, heads), loss=_loss, optimiser=optax.adam(1e-3),
            data=Generated(partial(sample_prompts, WORLD, BATCH)), key=jax.random.key(0), schedule=SCHEDULE,
            seeds=seeds, evaluate=lambda model: {"scale": jnp.abs(model.key_query_circuit()).mean()},
        )  # fmt: skip
    return clock.seconds_per_step()


def _bare_seconds(heads: int, seeds: int, steps_per_dispatch: int) -> Callable[[], float]:
    optimiser = optax.adam(1e-3)
    graph = nnx.graphdef(_build(heads, nnx.Rngs(0)))

    @jax.vmap
    def create(key: jax.Array) -> tuple[nnx.State, optax.OptState]:
        parameters = nnx.state(_build(heads, nnx.Rngs(key)))
        return parameters, optimiser.init(parameters)

    def one(parameters: nnx.State, state: optax.OptState, key: jax.Array, step: jax.Array) -> Any:
        prompt = sample_prompts(WORLD, BATCH, jax.random.fold_in(key, step))
        value, gradient = jax.value_and_grad(lambda p: _loss(nnx.merge(graph, p), prompt)[0])(parameters)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(parameters, update), state, value

    @partial(jax.jit, donate_argnums=0)
    def dispatch(carry: Any, keys: jax.Array, first: jax.Array) -> Any:
        def body(carry: Any, step: jax.Array) -> Any:
            parameters, state = carry
            parameters, state, value = jax.vmap(one, in_axes=(0, 0, 0, None))(parameters, state, keys, step)
            return (parameters, state), value

        return jax.lax.scan(body, carry, first + jnp.arange(steps_per_dispatch))

    keys = jax.random.split(jax.random.key(0), seeds)
    compiled = dispatch.lower(jax.eval_shape(create, keys), keys, jnp.int32(0)).compile()

    def measure() -> float:
        carry = create(keys)
        carry, _ = compiled(carry, keys, jnp.int32(0))
        jax.block_until_ready(carry)
        began = time.perf_counter()
        for first in range(steps_per_dispatch, SCHEDULE.steps, steps_per_dispatch):
            carry, _ = compiled(carry, keys, jnp.int32(first))
        jax.block_until_ready(carry)
        return (time.perf_counter() - began) / (SCHEDULE.steps - steps_per_dispatch)

    return measure
