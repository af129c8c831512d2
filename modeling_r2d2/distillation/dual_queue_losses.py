"""BriVL's contrastive loss over two queues (arXiv 2103.06561) as a pure function of tensors.

Notation as in `losses_r2d2`: B local pairs, N entries of a queue, D the embedding width, τ the temperature; q what the
trained encoders give (queries), k what the momentum encoders give (keys). All arithmetic is in float32.
"""

import torch
from torch import Tensor, nn

from ..model.losses_r2d2 import scaled_similarity


def dual_queue_loss(
    image_queries: Tensor,
    text_queries: Tensor,
    image_keys: Tensor,
    text_keys: Tensor,
    queued_images: Tensor,
    queued_texts: Tensor,
    temperature: Tensor,
    left_out: Tensor | None = None,
) -> Tensor:
    """Image to text and its mirror image, each with one positive and the queue's entries as the only negatives.

    L = −log [ exp(q_I·k_T/τ) / (exp(q_I·k_T/τ) + Σ_{n∈Q_T} exp(q_I·n/τ)) ]
        −log [ exp(q_T·k_I/τ) / (exp(q_T·k_I/τ) + Σ_{n∈Q_I} exp(q_T·n/τ)) ], the mean over the B local pairs.

    The other pairs of the batch are no negatives. With an empty queue the loss is 0, and so is its gradient.

    Args:
        image_queries: (B, D), with gradient.
        text_queries: (B, D), with gradient.
        image_keys: (B, D), of the same pairs. All vectors are L2-normalised.
        text_keys: (B, D), of the same pairs.
        queued_images: (N, D), keys of earlier pairs.
        queued_texts: (N, D), keys of earlier pairs.
        temperature: scalar τ.
        left_out: (B, N) boolean, entries that are no negatives of a row; None: every entry is one.

    Returns:
        scalar, float32.
    """
    to_texts = _contrast(image_queries, text_keys, queued_texts, temperature, left_out)
    to_images = _contrast(text_queries, image_keys, queued_images, temperature, left_out)
    return to_texts + to_images


def _contrast(queries: Tensor, keys: Tensor, queued: Tensor, temperature: Tensor, left_out: Tensor | None) -> Tensor:
    with torch.autocast(queries.device.type, enabled=False):
        positive = (queries.float() * keys.float()).sum(dim=1) / temperature.float()
    negatives = scaled_similarity(queries, queued, temperature)
    if left_out is not None:
        negatives = negatives.masked_fill(left_out, -torch.inf)
    # −log σ of the log-odds of the positive; logsumexp over no entries is −∞, a loss of 0
    return nn.functional.softplus(negatives.logsumexp(dim=1) - positive).mean()


__all__ = ["dual_queue_loss"]
