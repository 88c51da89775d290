"""Online k-means on the sphere, as a state that steps update (Roy et al. 2021, arXiv 2003.05997, section 4.1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Centroids(NamedTuple):
    """Exponential moving averages of how many vectors each centroid has been given, and of their sums. Not trained."""

    count: Float[Array, "*heads clusters"]
    total: Float[Array, "*heads clusters width"]

    @staticmethod
    def of(places: Float[Array, "*heads clusters width"]) -> "Centroids":
        """At those places, as if one vector had been given to each."""
        return Centroids(jnp.ones(places.shape[:-1], places.dtype), places)

    @property
    def places(self) -> Float[Array, "*heads clusters width"]:
        """Where the centroids are: means, brought to the length √width."""
        means = self.total / jnp.maximum(self.count, jnp.finfo(self.count.dtype).tiny)[..., None]
        size = jnp.linalg.norm(means, axis=-1, keepdims=True)
        return means * (means.shape[-1] ** 0.5 / jnp.where(size == 0, 1, size))

    def nearest(self, vectors: Float[Array, "*heads tokens width"]) -> Int[Array, "*heads tokens"]:
        """The centroid nearest to each vector, by the largest product: on a sphere it is the same."""
        return jnp.einsum("...tw,...cw->...tc", vectors, self.places).argmax(axis=-1)

    def update(self, vectors: Float[Array, "*heads tokens width"], decay: float) -> "Centroids":
        """After those vectors, each given to its nearest centroid. No gradient.

        Raises:
          ValueError: decay is not from 0 to 1.
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be from 0 to 1; got {decay}")
        vectors = jax.lax.stop_gradient(vectors)
        given = jax.nn.one_hot(self.nearest(vectors), self.count.shape[-1], dtype=vectors.dtype)
        count = decay * self.count + (1 - decay) * given.sum(axis=-2)
        total = decay * self.total + (1 - decay) * jnp.einsum("...tc,...tw->...cw", given, vectors)
        return Centroids(count, total)

    def commitment(self, vectors: Float[Array, "*heads tokens width"]) -> Float[Array, ""]:
        """Mean squared distance from vectors to their centroids, which pulls the vectors alone."""
        nearest = jnp.take_along_axis(self.places, self.nearest(vectors)[..., None], axis=-2)
        return ((vectors - jax.lax.stop_gradient(nearest)) ** 2).sum(axis=-1).mean()
