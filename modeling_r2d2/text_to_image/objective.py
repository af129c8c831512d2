"""The training objective: weighted regression of what the UNet predicts."""

from typing import cast

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR(t) = ᾱ_t / (1 − ᾱ_t): (B,) float32 of timesteps (B,); alphas_cumprod (T,) of the scheduler."""
    alpha = alphas_cumprod.to(timesteps.device, torch.float32)[timesteps]
    return alpha / (1 - alpha)


def min_snr_weights(snr: Tensor, gamma: float | None, prediction_type: str) -> Tensor:
    """Loss weights of arXiv 2303.09556 (equation 6 and section 3.4), in terms of what is predicted.

    On the clean sample the weight is min(SNR, γ). The same loss on the noise is 1 / SNR of it, on the velocity
    1 / (SNR + 1): min(1, γ / SNR), and min(SNR, γ) / (SNR + 1).

    Args:
        snr: (B,).
        gamma: γ; None: all weights 1.
        prediction_type: "epsilon", "v_prediction" or "sample", as in the scheduler's configuration.

    Returns:
        (B,) float32, finite at SNR = 0 too.

    Raises:
        ValueError: another prediction type.
    """
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction_type is {prediction_type!r}; use 'epsilon', 'v_prediction' or 'sample'")
    snr = snr.float()
    if gamma is None:
        return torch.ones_like(snr)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    clipped = snr.clamp(max=gamma)
    return clipped if prediction_type == "sample" else clipped / (snr + 1)


def regression_target(clean: Tensor, noise: Tensor, timesteps: Tensor, scheduler: DDPMScheduler) -> Tensor:
    """What the UNet should predict: the noise, the velocity √ᾱ ε − √(1 − ᾱ) x, or the clean sample; (B, C, h, w)."""
    kind = scheduler.config["prediction_type"]
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, cast(torch.IntTensor, timesteps))  # of any integers
    return noise if kind == "epsilon" else clean


def diffusion_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of weight × mean squared error, in float32: a scalar.

    Args:
        prediction: (B, C, h, w).
        target: (B, C, h, w).
        weights: (B,).
    """
    error = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return (weights * error).mean()


def stratified_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 timesteps, uniform over 0..total−1, one from each of `count` equal parts, in random order.

    Each alone is uniform; together they cover the range evenly, which lowers the variance of the loss
    (arXiv 2107.00630, appendix I.1).
    """
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    order = torch.randperm(count, generator=generator)
    return (places[order] * total).long().clamp(max=total - 1)
