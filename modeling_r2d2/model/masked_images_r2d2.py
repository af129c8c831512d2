"""Masked images for feature-guided distillation: a ViT drops patches, any other tower sees blocks of grey.

The paper masks images and does not say how; dropping patches before a ViT's layers also saves their cost (ours).
This file travels to the Hub beside the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Towers whose tokens do not know of each other before the first attention, so that patches may be left out.
#: Others (windows, rotary or relative positions, convolutions) see masked pixels.
_DROPS_PATCHES = frozenset(
    {
        "clip_vision_model",
        "chinese_clip_vision_model",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "siglip_vision_model",
        "vit",
    }
)


def drops_patches(vision_config) -> bool:
    """Whether the masked pass of this tower computes the kept patches alone."""
    return vision_config.model_type in _DROPS_PATCHES


def mask_grid(vision_config, image_size: tuple[int, int], block: int) -> tuple[int, int]:
    """Rows and columns of what is kept or masked: a ViT's patches, else blocks of `block` pixels a side."""
    height, width = image_size
    if drops_patches(vision_config):
        patch = vision_config.patch_size
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        return height // rows, width // columns
    return -(-height // block), -(-width // block)


def draw_kept(
    batch: int, cells: int, drop: float, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """For every image the cells that stay, sorted: (B, K) int64 with K = cells − round(drop · cells), at least 1.

    Raises:
        ValueError: `drop` is not within [0, 1).
    """
    if not 0 <= drop < 1:
        raise ValueError(f"the share of dropped patches must be within [0, 1), got {drop}")
    kept = max(1, cells - round(drop * cells))
    order = torch.rand((batch, cells), generator=generator, device=device)
    return order.topk(kept, dim=1).indices.sort(dim=1).values


@contextmanager
def keep_patches(tower: nn.Module, kept: Tensor, patches: int) -> Iterator[None]:
    """Within this context the tower's layers see, of every image, its special tokens and `kept` (B, K) of its
    `patches` patches."""

    def choose(module: nn.Module, arguments: tuple, tokens: Tensor) -> Tensor:
        special = tokens.shape[1] - patches
        index = kept + special
        if special:
            first = torch.arange(special, device=kept.device).expand(len(kept), special)
            index = torch.cat([first, index], dim=1)
        return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

    handle = tower.get_submodule("embeddings").register_forward_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def gray_blocks(pixel_values: Tensor, kept: Tensor, grid: tuple[int, int]) -> Tensor:
    """The images (B, 3, H, W) with every cell of the grid that is not in `kept` (B, K) set to −1, a grey one deviation
    darker than the mean colour.

    The mean colour itself, 0, is what a fresh patch embedding makes nothing of: the LayerNorm behind it (Swin's,
    ConvNeXt's) would have its epsilon alone to divide by, and the gradient through those patches is a thousandfold.
    """
    height, width = pixel_values.shape[-2:]
    visible = torch.zeros((len(kept), grid[0] * grid[1]), dtype=pixel_values.dtype, device=pixel_values.device)
    visible = visible.scatter_(1, kept, 1).view(-1, 1, *grid)
    side = max(-(-height // grid[0]), -(-width // grid[1]))
    visible = visible.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    visible = visible[..., :height, :width]
    return pixel_values * visible - (1 - visible)


__all__ = [
    "draw_kept",
    "drops_patches",
    "gray_blocks",
    "keep_patches",
    "mask_grid",
]
