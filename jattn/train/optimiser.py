"""The optimiser that attention models are trained with."""

import jax
import optax


def adamw_with_warm_up(
    learning_rate: float,
    warm_up: int,
    steps: int,
    *,
    lowest: float = 0.0,
    b2: float = 0.98,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) of gradients clipped to a global norm of 1.

    The rate rises from 0 over `warm_up` steps and falls to `lowest` along a cosine, which it reaches after `steps`.
    Weights of one axis, like those of norms, do not decay.
    """
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm_up, steps, lowest)

    def matrices(parameters: optax.Params) -> optax.Params:
        return jax.tree.map(lambda parameter: parameter.ndim > 1, parameters)

    adamw = optax.adamw(rate, b2=b2, weight_decay=weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)
