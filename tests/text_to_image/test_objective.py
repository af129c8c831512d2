"""The loss and its weights against a second implementation in numpy, written from the formulas."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from modeling_r2d2.text_to_image.objective import (
    diffusion_loss,
    min_snr_weights,
    regression_target,
    signal_to_noise,
    stratified_timesteps,
)

SNR = np.array([0.0, 1e-4, 0.3, 5.0, 80.0])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_are_those_on_the_clean_sample(kind):
    """min(SNR, γ) on x, rewritten: an error of ε is √SNR times one of x, an error of v √(SNR + 1) times."""
    factor = {"epsilon": SNR, "v_prediction": SNR + 1, "sample": np.ones_like(SNR)}[kind]
    with np.errstate(invalid="ignore"):
        expected = np.minimum(SNR, 5.0) / factor
    if kind == "epsilon":
        expected[0] = 1.0  # the limit
    weights = min_snr_weights(torch.tensor(SNR), 5.0, kind)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert torch.equal(min_snr_weights(torch.tensor(SNR), None, kind), torch.ones(5))


def test_unknown_prediction_type():
    with pytest.raises(ValueError, match="'flow'"):
        min_snr_weights(torch.ones(1), 5.0, "flow")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_loss_of_any_prediction_is_the_loss_on_the_clean_sample(kind):
    """From a noisy sample, the three predictions that all stem from one guess of x give one weighted loss."""
    rng = np.random.default_rng(0)
    scheduler = DDPMScheduler(prediction_type=kind, beta_schedule="squaredcos_cap_v2")
    timesteps = torch.tensor([50, 400, 900])
    clean, noise, guess = (torch.tensor(rng.normal(size=(3, 2, 4, 4)), dtype=torch.float32) for _ in range(3))
    alpha = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)[timesteps.numpy()].reshape(3, 1, 1, 1)
    x, e, g = (tensor.numpy().astype(np.float64) for tensor in (clean, noise, guess))
    noisy = np.sqrt(alpha) * x + np.sqrt(1 - alpha) * e
    guessed_noise = (noisy - np.sqrt(alpha) * g) / np.sqrt(1 - alpha)
    prediction = {
        "sample": g,
        "epsilon": guessed_noise,
        "v_prediction": np.sqrt(alpha) * guessed_noise - np.sqrt(1 - alpha) * g,
    }[kind]
    snr = (alpha / (1 - alpha)).reshape(3)
    np.testing.assert_allclose(signal_to_noise(scheduler.alphas_cumprod, timesteps).numpy(), snr, rtol=1e-4)
    expected = np.mean(np.minimum(snr, 5.0) * ((g - x) ** 2).reshape(3, -1).mean(axis=1))
    got = diffusion_loss(
        torch.tensor(prediction),
        regression_target(clean, noise, timesteps, scheduler),
        min_snr_weights(torch.tensor(snr), 5.0, kind),
    )
    assert got.item() == pytest.approx(expected, rel=1e-3)


def test_timesteps_cover_the_range_evenly():
    drawn = stratified_timesteps(50, 1000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    assert sorted((drawn // 20).tolist()) == list(range(50))
    assert drawn.tolist() != sorted(drawn.tolist())
    many = torch.cat([stratified_timesteps(3, 7, torch.Generator().manual_seed(seed)) for seed in range(400)])
    counts = torch.bincount(many, minlength=7)
    assert len(counts) == 7
    assert (counts - 1200 / 7).abs().max() < 60
