"""The models that are trained: one-layer attention regressors of every head number, on the same prompts."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import kernels
from experiments.in_context_regression.config import Config
from jattn.attention import MultiHeadAttention
from jattn.data.linear_prompts import Prompt, prompt_tokens, sample_prompts

VALIDATION_PROMPTS = 4096


def arm_names(config: Config) -> list[str]:
    """Names of the models: heads_1, heads_2, ... and linear."""
    return [f"heads_{heads}" for heads in config.heads] + (["linear"] if config.linear_heads else [])


class Regressors(nnx.Module):
    """Every arm of the experiment. The arms share no parameter, so training them together trains each alone."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        tasks = len(config.tasks)
        width = config.dimension + tasks
        self.arms = nnx.Dict(
            {f"heads_{heads}": MultiHeadAttention(width, heads, tasks, rngs=rngs) for heads in config.heads}
        )
        if config.linear_heads:
            self.arms["linear"] = MultiHeadAttention(
                width, config.linear_heads, tasks, rngs=rngs, attention=kernels.linear_attention
            )

    def __call__(self, prompt: Prompt) -> dict[str, Float[Array, "batch tasks"]]:
        """Each arm's prediction of the query's labels: the attention output, no residual, nothing after it."""
        tokens, query = prompt_tokens(prompt)
        return {name: arm(query, tokens)[:, 0] for name, arm in self.arms.items()}


def squared_errors(model: Regressors, prompt: Prompt) -> dict[str, Float[Array, ""]]:
    """Mean squared error of each arm, averaged over tasks."""
    return {name: jnp.mean((output - prompt.target) ** 2) for name, output in model(prompt).items()}


def loss(model: Regressors, prompt: Prompt) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sum over arms of the squared error; the metrics are the arms' own."""
    errors = squared_errors(model, prompt)
    return sum(errors.values(), jnp.float32(0)), errors


def evaluate(config: Config, model: Regressors) -> dict[str, Array]:
    """Error on fixed validation prompts, and the circuits of every head."""
    prompt = sample_prompts(
        config.world(config.context_length), VALIDATION_PROMPTS, jax.random.key(config.seed ^ 0x5EED)
    )
    metrics = dict(squared_errors(model, prompt))
    for name, arm in model.arms.items():
        metrics[f"{name}/key_query"] = arm.key_query_circuit()
        metrics[f"{name}/output_value"] = arm.output_value_circuit()
    return metrics
