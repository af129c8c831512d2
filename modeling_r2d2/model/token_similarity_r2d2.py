"""Token-wise similarity and its contrastive loss (FILIP, arXiv 2111.07783; Wukong, arXiv 2202.06767).

Notation: I images of N tokens, T texts of L tokens, D the embedding width, x_n and y_l tokens of unit length:

    s(I → T) = 1/N Σ_n max_l x_n·y_l        over the real tokens l
    s(T → I) = 1/|real| Σ_l max_n x_n·y_l   over the real tokens l

The two differ, so a batch has two matrices of similarities, not one and its transpose. A text without a real token
has similarity 0 with everything, both ways, and no gradient.

All I·N·T·L products at once would be the largest tensor of a training step by far. Here they are made, used and
dropped block by block, in the forward and again in the backward pass, so that the memory beyond inputs, outputs and
gradients is that of one block. All arithmetic is in float32 (float64 if given). This file travels to the Hub beside
the weights, so it imports only torch and flat siblings.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .distributed_r2d2 import gather, world_size
from .losses_r2d2 import pre_ranking_loss

#: Images and texts per block: 64² pairs of 49 and 32 tokens are 26 MB of products.
CHUNK_SIZE = 64


class TokenWiseSimilarity(NamedTuple):
    """Similarities of all pictures and texts token by token, each way.

    Attributes:
        per_image: (I, T) s(I → T), float32, None where not asked for.
        per_text: (T, I) s(T → I).
    """

    per_image: Tensor | None
    per_text: Tensor | None

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Where both were asked for."""
        return cast(tuple[Tensor, Tensor], tuple(self))


def token_wise_similarity(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_mask: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    zero_padded: Tensor | None = None,
    image_to_text: bool = True,
    text_to_image: bool = True,
) -> TokenWiseSimilarity:
    """Token-wise similarity of every image with every text, both ways from the same products.

    Args:
        image_tokens: (I, N, D) of unit length.
        text_tokens: (T, L, D) of unit length.
        text_mask: (T, L) true on real tokens. Texts are compared in order of their lengths, so that a block is only
            as wide as its own longest text.
        chunk_size: images and texts per block; a block holds chunk_size² · N · L products.
        zero_padded: (T,) boolean; for these texts padding is a candidate of similarity 0 for every image token (what
            zeroed padding features amount to): s(I → T) = 1/N Σ_n max(0, max_l x_n·y_l).
        image_to_text: compute it.
        text_to_image: compute it.

    Raises:
        ValueError: shapes that do not fit each other, no tokens, `chunk_size` below 1.
    """
    _check(image_tokens, text_tokens, text_mask, zero_padded, chunk_size)
    dtype = torch.promote_types(torch.promote_types(image_tokens.dtype, text_tokens.dtype), torch.float32)
    images, texts = image_tokens.to(dtype), text_tokens.to(dtype)
    mask = text_mask.to(device=images.device, dtype=torch.bool)
    plan = _Plan(mask, zero_padded, chunk_size, image_to_text, text_to_image)
    with torch.autocast(images.device.type, enabled=False):
        if torch.is_grad_enabled() and (images.requires_grad or texts.requires_grad):
            return TokenWiseSimilarity(*_TokenWise.apply(images, texts, plan))
        return TokenWiseSimilarity(*_similarities(images, texts, plan))


def gathered_token_wise_similarity(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_mask: Tensor,
    *,
    chunk_size: int = CHUNK_SIZE,
    zero_padded: Tensor | None = None,
) -> TokenWiseSimilarity:
    """The local images against the texts of all workers, the local texts against the images of all workers.

    Every worker must hold the same number B of images and of texts, and images of the same number of tokens; the
    lengths of their texts may differ. Tokens are gathered with gradient. Arguments as `token_wise_similarity`.

    Returns:
        per_image (B, W·B) and per_text (B, W·B), columns in the order of the workers.
    """
    settings: dict[str, Any] = {"chunk_size": chunk_size, "zero_padded": zero_padded}
    if world_size() == 1:
        return token_wise_similarity(image_tokens, text_tokens, text_mask, **settings)
    length = torch.tensor(text_tokens.shape[1], device=text_tokens.device)
    dist.all_reduce(length, dist.ReduceOp.MAX)
    missing = int(length) - text_tokens.shape[1]
    all_texts = gather(nn.functional.pad(text_tokens, (0, 0, 0, missing)))
    # a mask and the flags are small: they travel as bytes, in one message
    flags = text_mask.new_zeros(len(text_mask)) if zero_padded is None else zero_padded
    mask = nn.functional.pad(text_mask.to(torch.uint8), (0, missing))
    all_flags = gather(torch.cat([mask, flags.to(torch.uint8)[:, None]], dim=1)).bool()
    per_image = token_wise_similarity(
        image_tokens,
        all_texts,
        all_flags[:, :-1],
        chunk_size=chunk_size,
        zero_padded=None if zero_padded is None else all_flags[:, -1],
        text_to_image=False,
    ).per_image
    all_images = gather(image_tokens)
    per_text = token_wise_similarity(all_images, text_tokens, text_mask, **settings, image_to_text=False).per_text
    return TokenWiseSimilarity(per_image, per_text)


def token_wise_contrastive_loss(similarity: TokenWiseSimilarity, temperature: Tensor, targets: Tensor) -> Tensor:
    """FILIP's contrastive loss (arXiv 2111.07783).

    L = ½ [ H(y, softmax_j s(I_i → T_j)/τ) + H(y, softmax_j s(T_i → I_j)/τ) ], the mean over the B local rows.

    Args:
        similarity: (B, N) both ways, of `gathered_token_wise_similarity`.
        temperature: τ, scalar.
        targets: (B, N) of `contrastive_targets`.
    """
    per_image, per_text = similarity.both
    temperature = temperature.float()
    return pre_ranking_loss(per_image / temperature, per_text / temperature, targets)


class _Plan:
    """What forward and backward share: blocks of texts, and which outputs are wanted."""

    def __init__(
        self, mask: Tensor, zero_padded: Tensor | None, chunk_size: int, image_to_text: bool, text_to_image: bool
    ):
        self.mask, self.chunk_size = mask, chunk_size
        self.zero_padded = None if zero_padded is None else zero_padded.to(device=mask.device, dtype=torch.bool)
        self.image_to_text, self.text_to_image = image_to_text, text_to_image
        length = mask.shape[1]
        places = torch.arange(1, length + 1, device=mask.device)
        ends = (mask * places).amax(dim=1)  # behind the last real token
        if torch.compiler.is_compiling():  # widths must not depend on data there
            order = torch.arange(len(mask), device=mask.device)
            widths = [length] * -(-len(mask) // chunk_size)
        else:
            order = ends.argsort()
            last = torch.arange(chunk_size - 1, len(mask) + chunk_size - 1, chunk_size).clamp_max(len(mask) - 1)
            widths = ends[order[last.to(mask.device)]].clamp_min(1).tolist()
        self.texts = list(zip(order.split(chunk_size), widths, strict=True))

    def images(self, total: int) -> Iterator[slice]:
        """Rows of each block of images."""
        return (slice(start, start + self.chunk_size) for start in range(0, total, self.chunk_size))

    def block(self, index: Tensor, width: int, dtype: torch.dtype) -> "_Texts":
        """What is known of the texts `index` before any image is."""
        real = self.mask[index, :width]
        count = real.sum(dim=1)
        return _Texts(
            padding=~real,
            share=real.to(dtype) / count.clamp_min(1)[:, None],
            empty=count == 0,
            floor=None if self.zero_padded is None else self.zero_padded[index],
        )


class _Texts(NamedTuple):
    """A block of t texts, w tokens wide: padding (t, w), share (t, w) of each token in the mean over its text, empty
    (t,) without a real token, floor (t,) where padding is a candidate of similarity 0."""

    padding: Tensor
    share: Tensor
    empty: Tensor
    floor: Tensor | None


def _products(images: Tensor, texts: Tensor) -> Tensor:
    """(i, N, D), (t, w, D) -> (i, N, t, w)."""
    flat = images.flatten(0, 1) @ texts.flatten(0, 1).t()
    return flat.view(*images.shape[:2], *texts.shape[:2])


def _similarities(images: Tensor, texts: Tensor, plan: _Plan) -> tuple[Tensor | None, Tensor | None]:
    per_image = images.new_empty(len(images), len(texts)) if plan.image_to_text else None
    per_text = images.new_empty(len(texts), len(images)) if plan.text_to_image else None
    for index, width in plan.texts:
        block, chunk = plan.block(index, width, texts.dtype), texts[index, :width]
        for rows in plan.images(len(images)):
            products = _products(images[rows], chunk)
            if per_text is not None:
                best = products.amax(dim=1)  # (i, t, w)
                per_text[index, rows] = (best * block.share).sum(dim=2).t()
            if per_image is not None:
                best = products.masked_fill_(block.padding, -torch.inf).amax(dim=3)  # (i, N, t)
                if block.floor is not None:
                    best = torch.where(block.floor, best.clamp_min(0), best)
                per_image[rows, index] = best.masked_fill_(block.empty, 0).mean(dim=1)
    return per_image, per_text


class _TokenWise(torch.autograd.Function):
    """`_similarities`; the backward pass makes each block's products again instead of keeping them."""

    @staticmethod
    def forward(ctx, images: Tensor, texts: Tensor, plan: _Plan) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(images, texts)
        ctx.plan = plan
        return _similarities(images, texts, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx, image_gradient: Tensor | None, text_gradient: Tensor | None):
        images, texts = ctx.saved_tensors
        with torch.autocast(images.device.type, enabled=False):
            return *_gradients(images, texts, ctx.plan, image_gradient, text_gradient, ctx.needs_input_grad), None


def _gradients(
    images: Tensor,
    texts: Tensor,
    plan: _Plan,
    image_gradient: Tensor | None,
    text_gradient: Tensor | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """The maximum passes its gradient to one token: the gradient of a block's products is zero but there."""
    for_images = torch.zeros_like(images) if needed[0] else None
    for_texts = torch.zeros_like(texts) if needed[1] else None
    tokens = images.shape[1]
    for index, width in plan.texts:
        block, chunk = plan.block(index, width, texts.dtype), texts[index, :width]
        of_chunk = torch.zeros_like(chunk) if needed[1] else None
        for rows in plan.images(len(images)):
            part = images[rows]
            products = _products(part, chunk)
            gradient = torch.zeros_like(products)
            if text_gradient is not None:
                place = products.argmax(dim=1, keepdim=True)  # (i, 1, t, w)
                each = text_gradient[index, rows].t()[:, :, None] * block.share
                gradient.scatter_(1, place, each[:, None])
            if image_gradient is not None:
                best, place = products.masked_fill_(block.padding, -torch.inf).max(dim=3, keepdim=True)  # (i, N, t, 1)
                each = (image_gradient[rows, index] / tokens).masked_fill(block.empty, 0)[:, None, :, None]
                each = each.expand_as(best)
                if block.floor is not None:  # the zero of the padding won
                    each = each.masked_fill(block.floor[:, None] & (best < 0), 0)
                gradient.scatter_add_(3, place, each)
            gradient = gradient.flatten(2).flatten(0, 1)  # (i·N, t·w)
            if for_images is not None:
                for_images[rows] += (gradient @ chunk.flatten(0, 1)).view_as(part)
            if of_chunk is not None:
                of_chunk += (gradient.t() @ part.flatten(0, 1)).view_as(of_chunk)
        if for_texts is not None and of_chunk is not None:
            for_texts[index, :width] = of_chunk
    return for_images, for_texts


def _check(images: Tensor, texts: Tensor, mask: Tensor, zero_padded: Tensor | None, chunk_size: int):
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if images.dim() != 3 or texts.dim() != 3 or images.shape[2] != texts.shape[2]:
        raise ValueError(
            "token-wise similarity takes image tokens (I, N, D) and text tokens (T, L, D) of the same width D, got "
            f"{tuple(images.shape)} and {tuple(texts.shape)}"
        )
    if 0 in images.shape or 0 in texts.shape:
        raise ValueError(f"no tokens to compare: images {tuple(images.shape)}, texts {tuple(texts.shape)}")
    if mask.shape != texts.shape[:2]:
        raise ValueError(f"text_mask must be (T, L) = {tuple(texts.shape[:2])}, got {tuple(mask.shape)}")
    if zero_padded is not None and zero_padded.shape != texts.shape[:1]:
        raise ValueError(f"zero_padded must be (T,) = {tuple(texts.shape[:1])}, got {tuple(zero_padded.shape)}")


__all__ = [
    "TokenWiseSimilarity",
    "gathered_token_wise_similarity",
    "token_wise_contrastive_loss",
    "token_wise_similarity",
]
