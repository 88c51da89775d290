"""The models that are trained: one-layer attention regressors of every head number, on the same prompts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

import kernels
from experiments.in_context_regression.config import Config
from jattn.data.linear_prompts import Prompt, prompt_tokens, sample_prompts
from jattn.mechanisms import MultiHeadAttention

VALIDATION_PROMPTS = 4096


def arm_names(config: Config) -> list[str]:
    """Names of the models: heads_1, heads_2, ... and linear."""
    return [f"heads_{heads}" for heads in config.heads] + (["linear"] if config.linear_heads else [])


class Regressors(nnx.Module):
    """Every arm of the experiment. An arm is a set of heads, and its prediction is the sum over them.

    Heads share no parameter, so one layer holds the heads of all softmax arms side by side, and training the arms'
    summed loss trains each arm as if it were alone.
    """

    def __init__(self, config: Config, rngs: nnx.Rngs):
        tasks = len(config.tasks)
        width = config.dimension + tasks
        ends = np.cumsum(config.heads).tolist()
        self.arms = {f"heads_{heads}": (end - heads, end) for heads, end in zip(config.heads, ends, strict=True)}
        self.softmax = MultiHeadAttention(width, ends[-1], tasks, rngs=rngs)
        linear = partial(MultiHeadAttention, width, config.linear_heads, tasks, attention=kernels.linear_attention)
        self.linear = linear(rngs=rngs) if config.linear_heads else None

    def __call__(self, prompt: Prompt) -> dict[str, Float[Array, "batch tasks"]]:
        """Each arm's prediction of the query's labels: the attention output, no residual, nothing after it."""
        tokens, query = prompt_tokens(prompt)
        outputs = self.softmax.head_outputs(query, tokens)[:, 0]
        answers = {name: outputs[:, first:past].sum(axis=1) for name, (first, past) in self.arms.items()}
        if self.linear is not None:
            answers["linear"] = self.linear(query, tokens)[:, 0]
        return answers

    def circuits(self) -> dict[str, tuple[Float[Array, "heads width width"], Float[Array, "heads tasks width"]]]:
        """Each softmax arm's (key-query, output-value) circuits."""
        key_query, output_value = self.softmax.key_query_circuit(), self.softmax.output_value_circuit()
        return {name: (key_query[first:past], output_value[first:past]) for name, (first, past) in self.arms.items()}


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
    for name, (key_query, output_value) in model.circuits().items():
        metrics |= {f"{name}/key_query": key_query, f"{name}/output_value": output_value}
    return metrics
