"""jattn: attention, and optimisation inside optimisation, taken apart in JAX and Flax."""

__version__ = "0.1.0"
