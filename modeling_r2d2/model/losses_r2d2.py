"""The objectives of R2D2 (arXiv 2205.03860) as pure functions of tensors.

Notation: B the local batch, N the batch over all workers (and a queue, where there is one), D the embedding
width, s(I,T) the cosine of two embeddings, τ the temperature. All arithmetic is in float32, also when the
embeddings come in float16 or bfloat16 or under autocast.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .distributed_r2d2 import gather, gather_with_ids, global_mean, process_index


def scaled_similarity(rows: Tensor, columns: Tensor, temperature: Tensor) -> Tensor:
    """s(rows, columns) / τ of L2-normalised embeddings (B, D) and (N, D), as (B, N) in float32."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows.float() @ columns.float().t().to(rows.device) / temperature.float()


def same_identity(row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """(B, N) boolean: 1[id_i = id_j]; of several ids each, (B, K) and (N, K), whether they share one of a kind."""
    same = row_ids[:, None] == column_ids[None, :]
    return same if same.dim() == 2 else same.any(dim=2)


class GlobalComparison(NamedTuple):
    """B local pairs against the N of all workers: logits_per_image of local images over all texts, logits_per_text of
    local texts over all images, (B, N) float32; positives (B, N) boolean, the pairs of the same identity."""

    logits_per_image: Tensor
    logits_per_text: Tensor
    positives: Tensor


def compare_globally(
    image_embeds: Tensor, text_embeds: Tensor, temperature: Tensor, ids: Tensor | None = None
) -> GlobalComparison:
    """What pre-ranking compares: s(I, T) / τ over the batch of all workers, with gradient to all of them.

    Args:
        image_embeds: (B, D), L2-normalised.
        text_embeds: (B, D), L2-normalised.
        temperature: τ.
        ids: (B,) or (B, K) int64 identities of the pairs, see `same_identity`; None: all differ.
    """
    embeds = torch.cat([image_embeds, text_embeds], dim=1)
    if ids is None:
        gathered = gather(embeds)
        positives = torch.zeros((len(embeds), len(gathered)), dtype=torch.bool, device=embeds.device)
        positives.diagonal(process_index() * len(embeds)).fill_(True)
    else:
        gathered, all_ids = gather_with_ids(embeds, ids)
        positives = same_identity(ids, all_ids)
    all_images, all_texts = gathered.chunk(2, dim=1)
    return GlobalComparison(
        scaled_similarity(image_embeds, all_texts, temperature),
        scaled_similarity(text_embeds, all_images, temperature),
        positives,
    )


def contrastive_targets(positives: Tensor) -> Tensor:
    """y_ij = 1[id_i = id_j] / Σ_j 1[id_i = id_j]: all captions of one picture share the mass. (B, N) float32."""
    positives = positives.float()
    return positives / positives.sum(dim=1, keepdim=True)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """H(y, softmax(logits)) = −Σ_j y_ij log p_ij per row: (B, N), (B, N) -> (B,) in float32.

    With targets whose rows do not sum to one (a reliability weight in them) the sum is taken as it stands.
    """
    return -(targets * nn.functional.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def pre_ranking_loss(logits_per_image: Tensor, logits_per_text: Tensor, targets: Tensor) -> Tensor:
    """GCPR, global contrastive pre-ranking.

    L = ½ [ H(y, softmax_j s(I,T_j)/τ) + H(y, softmax_j s(T,I_j)/τ) ], the mean over the B local rows.

    Args:
        logits_per_image: (B, N) local images against the texts of all workers.
        logits_per_text: (B, N) local texts against the images of all workers.
        targets: (B, N) of `contrastive_targets`, the same in both directions.
    """
    image_loss = soft_cross_entropy(logits_per_image, targets).mean()
    text_loss = soft_cross_entropy(logits_per_text, targets).mean()
    return (image_loss + text_loss) / 2


class HardNegatives(NamedTuple):
    """Drawn negatives: for text i the image `image_index[i]`, for image i the text `text_index[i]`, both within
    the batch of all workers; `valid` (B,) is False where every pair of the batch shares the id."""

    image_index: Tensor
    text_index: Tensor
    valid: Tensor


def negative_logits(logits: Tensor, positives: Tensor) -> Tensor:
    """What hard negatives are drawn by: s/τ, −∞ on the pairs of the same id in every row that has a negative.

    The paper draws by softmax(s/τ) with those pairs set to zero. The softmax over the negatives alone has the same
    ratios, and never underflows to zero on all of them.

    Args:
        logits: (…, B, N).
        positives: (B, N) boolean.
    """
    return logits.masked_fill(positives & ~positives.all(dim=1, keepdim=True), -torch.inf)


@torch.no_grad()
def draw_hard_negatives(
    logits_per_image: Tensor,
    logits_per_text: Tensor,
    positives: Tensor,
    generator: torch.Generator | None = None,
) -> HardNegatives:
    """One negative text for every image and one negative image for every text, with probability softmax(s/τ).

    A row without any negative (a batch with one single id) draws some column and is marked invalid.

    Args:
        logits_per_image: (B, N) scaled similarities.
        logits_per_text: (B, N) scaled similarities.
        positives: (B, N) boolean, the pairs of the same id.
        generator: for reproducible draws; default: torch's global generator.
    """
    # By the inverse of the cumulative distribution: one random number per row instead of one per entry.
    mass = _both_ways(logits_per_image, logits_per_text, positives).softmax(dim=-1).cumsum(dim=-1)
    uniform = torch.rand((*mass.shape[:-1], 1), generator=generator, device=mass.device)
    image_index, text_index = columns_at(mass, uniform).unbind()
    return HardNegatives(image_index, text_index, ~positives.all(dim=1))


def columns_at(mass: Tensor, uniform: Tensor) -> Tensor:
    """The column of every row where its cumulative distribution passes a random number: (…,) int64.

    Args:
        mass: (…, N), cumulated; a column of no mass of its own is never drawn.
        uniform: (…, 1) in [0, 1).
    """
    total = mass[..., -1:]
    place = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))  # never beyond the end
    # among NaN there is no place: the last column stands for it, and the loss, being NaN, says so
    return torch.searchsorted(mass, place, right=True).squeeze(-1).clamp_(max=mass.shape[-1] - 1)


@torch.no_grad()
def hardest_negatives(logits_per_image: Tensor, logits_per_text: Tensor, positives: Tensor) -> HardNegatives:
    """The most similar negative of every row instead of a drawn one; arguments as `draw_hard_negatives`."""
    image_index, text_index = _both_ways(logits_per_image, logits_per_text, positives).argmax(dim=-1).unbind()
    return HardNegatives(image_index, text_index, ~positives.all(dim=1))


def _both_ways(logits_per_image: Tensor, logits_per_text: Tensor, positives: Tensor) -> Tensor:
    """(2, B, N) of `negative_logits`: text rows, whose negatives are images, then image rows."""
    return negative_logits(torch.stack([logits_per_text, logits_per_image]).float(), positives)


def ranking_loss(
    text_match_logits: Tensor,
    image_match_logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    total_weight: Tensor | None = None,
) -> Tensor:
    """FGR, fine-grained ranking: cross-entropy of each cross encoder as a weighted mean, then their mean.

    L = ½ Σ_encoders [ Σ_p w_p H(y_p, softmax(logits_p)) / Σ_p w_p ], w = 1 for negatives and 2 for positives;
    over several workers both sums are global.

    Args:
        text_match_logits: (P, 2) of the text-image encoder; class 1 = match.
        image_match_logits: (P, 2) of the image-text encoder.
        labels: (P,) int64.
        weights: (P,) replaces the class weights; 0 leaves a pair out.
        total_weight: Σ_p w_p where these pairs are a part of the batch; None: of these pairs.
    """
    if weights is None:
        weights = match_weights(labels)
    losses = nn.functional.cross_entropy(
        torch.cat([text_match_logits, image_match_logits]).float(), labels.repeat(2), reduction="none"
    )
    text_loss, image_loss = (losses.view(2, -1) * weights).sum(dim=1)
    return global_mean((text_loss + image_loss) / 2, weights.sum() if total_weight is None else total_weight)


def match_weights(labels: Tensor) -> Tensor:
    """Class weights [1 negative, 2 positive] of FGR: (P,) float32."""
    return 1.0 + labels.float()


def masked_language_modeling_loss(
    logits: Tensor, labels: Tensor, count: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """MLM: mean cross-entropy over the masked tokens of all workers. (M, V), (M,) -> scalar; no token gives 0.

    `count`: the worker's masked tokens where these M are a part of them; None: M. `smoothing`: the share of each
    label's mass that is spread over all tokens.
    """
    total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
    return global_mean(total, torch.tensor(float(labels.numel()), device=logits.device) if count is None else count)
