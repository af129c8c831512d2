"""The objectives of two-way distillation (arXiv 2205.03860) as pure functions of tensors.

Notation as in `losses_r2d2`: B local rows, N candidates (the teacher's batch of all workers and its queue), D feature
width, K prototypes, s(·,·) cosine, τ temperature. All arithmetic is in float32.

The paper names the two ways and the reliability weight; formulas and settings it leaves open follow ALBEF (TgD) and
DINO (FgD) and are this project's choice.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .losses_r2d2 import contrastive_targets, scaled_similarity, soft_cross_entropy

#: Where the reliability weight of a candidate enters TgD.
ReliabilityPlacement = Literal["loss", "logits"]


def soft_targets(
    teacher_rows: Tensor,
    teacher_candidates: Tensor,
    positives: Tensor,
    temperature: Tensor,
    alpha: float,
    reliability: Tensor | None = None,
    placement: ReliabilityPlacement = "loss",
) -> Tensor:
    """TgD's targets: ŷ = α · softmax_j(s(t_i, t_j)/τ) + (1 − α) · y, y_ij = 1[id_i = id_j] / Σ_j 1[id_i = id_j].

    With the reliability w_j of the candidates:
    placement "loss": w_j ŷ_ij, so that the loss is −Σ_j w_j ŷ_ij log p_ij;
    placement "logits": log w_j is added to the teacher's logits, and y shares its mass by w_j, so that a student
    whose own logits carry the same log w_j (see `target_guided_loss`) is compared with candidates that count less.

    Args:
        teacher_rows: (B, D), the teacher's L2-normalised embeddings.
        teacher_candidates: (N, D), those of the other modality.
        positives: (B, N) boolean, same id.
        temperature: scalar τ.
        reliability: (N,) in (0, 1].

    Returns:
        (B, N) float32.
    """
    logits = scaled_similarity(teacher_rows, teacher_candidates, temperature)
    hard = positives
    if reliability is not None and placement == "logits":
        logits += reliability.log()
        hard = positives * reliability
    targets = torch.lerp(contrastive_targets(hard), logits.softmax(dim=1), alpha)
    return targets * reliability if reliability is not None and placement == "loss" else targets


def target_guided_loss(
    logits_per_image: Tensor, logits_per_text: Tensor, image_targets: Tensor, text_targets: Tensor
) -> Tensor:
    """TgD, target-guided distillation: ½ [ H(ŷ_I, softmax s(I, T̂_j)/τ) + H(ŷ_T, softmax s(T, Î_j)/τ) ], mean over B.

    Args:
        logits_per_image: (B, N) student rows against the teacher's texts; with the reliability in the logits, log w_j
            is in them.
        logits_per_text: (B, N) the same against its images.
        image_targets: (B, N) of `soft_targets`.
        text_targets: (B, N) of `soft_targets`.
    """
    image_loss = soft_cross_entropy(logits_per_image, image_targets).mean()
    text_loss = soft_cross_entropy(logits_per_text, text_targets).mean()
    return (image_loss + text_loss) / 2


def feature_temperatures(width: int) -> tuple[float, float]:
    """FgD's τ_s = 1.6/√d and τ_t = 0.64/√d for cosines of d dimensions (ours).

    The cosine of two random directions has mean 0 and standard deviation 1/√d, so that the same τ makes the flatter a
    softmax the wider its features are. With τ ∝ 1/√d the logits of random features have one deviation σ at every width,
    0.625 of the student and 1.56 of the teacher, and P_t an entropy of about log K − σ²/2 = log K − 1.2 nats, over any
    number K of prototypes. At DINO's own d = 256 they are DINO's 0.1 and 0.04.
    """
    return 1.6 / width**0.5, 0.64 / width**0.5


def teacher_distribution(cosines: Tensor, center: Tensor, temperature: float) -> Tensor:
    """FgD's target: P_t = softmax((z_t − μ)/τ_t) over the K prototypes. (B, K), (K,) -> (B, K) float32."""
    return ((cosines.float() - center) / temperature).softmax(dim=-1)


def relative_entropy(targets: Tensor) -> Tensor:
    """H(P)/log K, mean over the rows: (B, K) -> scalar. 0: each row is one prototype, 1: each is uniform; near either
    there is nothing left for the student to learn."""
    return torch.special.entr(targets).sum(dim=-1).mean() / math.log(targets.shape[-1])


def feature_guided_loss(
    image_cosines: Tensor,
    text_cosines: Tensor,
    image_targets: Tensor,
    text_targets: Tensor,
    temperature: float,
) -> Tensor:
    """FgD, feature-guided distillation: ½ [ H(P_t(I), P_s(I)) + H(P_t(T), P_s(T)) ], P_s = softmax(z_s/τ_s), mean
    over B.

    The paper compares features of masked inputs with the teacher's of whole ones, and no more of it is published; the
    centre, the temperatures and the head whose cosines z are compared follow DINO (`R2D2FeatureHead`).

    Args:
        image_cosines: (B, K) of the student's masked images with the prototypes of their head.
        text_cosines: (B, K) those of masked texts.
        image_targets: (B, K) of `teacher_distribution`, on whole inputs.
        text_targets: (B, K) of `teacher_distribution`, on whole inputs.
        temperature: τ_s.
    """
    image_loss = soft_cross_entropy(image_cosines.float() / temperature, image_targets).mean()
    text_loss = soft_cross_entropy(text_cosines.float() / temperature, text_targets).mean()
    return (image_loss + text_loss) / 2


def cosine_agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean cosine of the student's and the teacher's embeddings of the same inputs: (B, D), (B, D) -> scalar."""
    return nn.functional.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


__all__ = [
    "ReliabilityPlacement",
    "cosine_agreement",
    "feature_guided_loss",
    "feature_temperatures",
    "relative_entropy",
    "soft_targets",
    "target_guided_loss",
    "teacher_distribution",
]
