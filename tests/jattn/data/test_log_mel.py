"""Spectrograms against sums of waves written out, and mel bands against what Slaney's scale is known by."""

import jax
import numpy as np

from jattn.data.log_mel import HOP, RATE, WINDOW, log_mel, mel_bands


def test_bands_are_even_below_a_thousand_hertz_and_geometric_above() -> None:
    bands = mel_bands(80).astype(np.float64)
    assert bands.shape == (80, WINDOW // 2 + 1)
    hertz = RATE / WINDOW
    # Of area 1 where many frequencies sample the triangle, as the wide bands high up.
    np.testing.assert_allclose(bands[-8:].sum(axis=1) * hertz, 1, rtol=0.05)
    centres = (bands * np.arange(WINDOW // 2 + 1)).sum(axis=1) / bands.sum(axis=1) * hertz
    # 15 mels to 1 kHz and ln 8 · 27 / ln 6.4 above it, of which 81 steps are made.
    step = (15 + 27 * np.log(8) / np.log(6.4)) / 81
    np.testing.assert_allclose(np.diff(centres[50:]) / centres[50:-1], 6.4 ** (step / 27) - 1, rtol=0.4)
    np.testing.assert_allclose(np.diff(centres[:20]).mean(), step * 200 / 3, rtol=0.05)


def test_frames_are_the_power_of_their_windows() -> None:
    """Three frames of a second of noise, the first of which reflects the beginning."""
    samples = np.random.default_rng(0).uniform(-1, 1, (2, RATE)).astype(np.float32)
    found = np.asarray(jax.jit(lambda samples: log_mel(samples, seconds=1))(samples))
    assert found.shape == (2, RATE // HOP, 80)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(WINDOW // 2 + 1), np.arange(WINDOW)) / WINDOW)
    hann = np.sin(np.pi * np.arange(WINDOW) / WINDOW) ** 2
    for sound, frames in zip(samples.astype(np.float64), found, strict=True):
        decibels = {}
        for frame in (0, 1, 50):
            places = np.abs(np.arange(WINDOW) + frame * HOP - WINDOW // 2)
            decibels[frame] = np.log10(mel_bands(80) @ np.abs(waves @ (hann * sound[places])) ** 2)
        # Noise is loud everywhere: nothing is 80 dB below the loudest, and all frames are shifted and scaled alike.
        for frame, expected in decibels.items():
            np.testing.assert_allclose(frames[frame], (expected + 4) / 4, atol=1e-4)


def test_silence_is_eighty_decibels_below_the_loudest() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE).astype(np.float32)[None]
    found = np.asarray(jax.jit(lambda samples: log_mel(samples, seconds=1))(tone))
    assert np.isclose(found.max() - found[0, -1].max(), 2, atol=1e-5)
    assert found[0, 20].argmax() == np.abs(mel_bands(80)[:, 11]).argmax()  # 440 Hz is frequency 11 of a frame
