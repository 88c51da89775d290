"""Sound as log-mel spectrograms, as Whisper reads it (Radford et al. 2022, arXiv 2212.04356, section 2.2)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

RATE = 16_000
"""Samples a second."""
WINDOW, HOP = 400, 160
"""Samples that a frame is of, and from one frame to the next."""


def log_mel(
    samples: Float[Array, "batch samples"], mels: int = 80, seconds: int = 30
) -> Float[Array, "batch frames mels"]:
    """Power in mel bands of 25 ms every 10 ms, as decibels: within 80 dB of the loudest, about -1 to 1.

    Sound is cut or followed by silence to so many seconds; Whisper reads 30.

    Args:
      samples: at 16 kHz, from -1 to 1.
    """
    wanted = seconds * RATE
    samples = jnp.pad(samples[:, :wanted], ((0, 0), (0, max(0, wanted - samples.shape[1]))))
    padded = jnp.pad(samples, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    places = np.arange(wanted // HOP)[:, None] * HOP + np.arange(WINDOW)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = jnp.abs(jnp.fft.rfft(padded[:, places] * hann.astype(np.float32))) ** 2
    decibels = jnp.log10(jnp.maximum(power @ mel_bands(mels).T, 1e-10))
    loudest = decibels.max(axis=(1, 2), keepdims=True)
    return (jnp.maximum(decibels, loudest - 8) + 4) / 4


def mel_bands(mels: int) -> Float32[np.ndarray, "mels frequencies"]:
    """Triangles over the frequencies of a frame, evenly apart in mels, each of area 1 in Hz (Slaney 1998).

    A mel is 200 / 3 Hz up to 1 kHz, and above it grows by a factor 6.4 in 27.
    """
    step = np.log(6.4) / 27
    edges = np.linspace(0, 15 + np.log(RATE / 2 / 1000) / step, mels + 2)
    edges = np.where(edges < 15, edges * 200 / 3, 1000 * np.exp(step * (edges - 15)))
    frequencies = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)).astype(np.float32)
