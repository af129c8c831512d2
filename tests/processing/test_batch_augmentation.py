"""Batch augmentation: each part does what it says, off means unchanged, and a sample's draws alone decide."""

import dataclasses

import numpy as np
import pytest
import torch

from modeling_r2d2.processing.batch_augmentation import BatchAugmentation

OFF = dict.fromkeys((field.name for field in dataclasses.fields(BatchAugmentation) if field.name != "erase_sides"), 0)


def images(count: int = 6, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side, side, generator=generator) * 255


def draws(count: int = 6, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([BatchAugmentation().draw(rng) for _ in range(count)]))


def test_everything_off_changes_nothing():
    torch.testing.assert_close(BatchAugmentation(**OFF)(images(), draws()), images(), rtol=0, atol=1e-2)


def test_flip_alone():
    flipped = BatchAugmentation(**{**OFF, "flip": 1})(images(), draws())
    torch.testing.assert_close(flipped, images().flip(-1), rtol=0, atol=1e-2)


def test_a_quarter_turn():
    draw = draws()
    draw[:, 0] = 1.0  # the whole of +90 degrees
    turned = BatchAugmentation(**{**OFF, "rotate": 90})(images(), draw)
    torch.testing.assert_close(turned, images().rot90(1, (2, 3)), rtol=0, atol=1e-2)


def test_translation_uncovers_white():
    draw = draws()
    draw[:, 6], draw[:, 7] = 1.0, 0.5  # a quarter of the side to the left, none down
    moved = BatchAugmentation(**{**OFF, "translate": 0.25})(images(), draw)
    torch.testing.assert_close(moved[..., :12], images()[..., 4:], rtol=0, atol=1e-2)
    torch.testing.assert_close(moved[..., 12:], torch.full((6, 3, 16, 4), 255.0), rtol=0, atol=1e-2)


def test_color_parts_against_their_formulas():
    draw, x = draws(), images()
    gray = x.mean(1, keepdim=True)

    def factor(row: int, limit: float) -> torch.Tensor:
        return (1 + (2 * draw[:, row] - 1) * limit).view(-1, 1, 1, 1)

    def applied(**parts) -> torch.Tensor:
        return BatchAugmentation(**{**OFF, **parts})(x, draw)

    expected = {
        "saturation": gray + (x - gray) * factor(8, 0.3),
        "brightness": x * factor(15, 0.3),
        "contrast": (x - x.mean((1, 2, 3), keepdim=True)) * factor(14, 0.3) + x.mean((1, 2, 3), keepdim=True),
        "tint": x * torch.cat([factor(row, 0.3) for row in (9, 10, 11)], dim=1),
    }
    for name, result in expected.items():
        torch.testing.assert_close(applied(**{name: 0.3}), result.clamp(0, 255), rtol=0, atol=1e-2)
    torch.testing.assert_close(applied(grayscale=1), gray.expand(-1, 3, -1, -1), rtol=0, atol=1e-2)
    shuffled = applied(shuffle_channels=1)
    assert not torch.allclose(shuffled, x, atol=1)
    torch.testing.assert_close(shuffled.sort(dim=1).values, x.sort(dim=1).values, rtol=0, atol=1e-2)


def test_blur_and_erase():
    x = images()
    blurred = BatchAugmentation(**{**OFF, "blur": 1})(x, draws())
    assert (blurred.var(dim=(1, 2, 3)) < x.var(dim=(1, 2, 3))).all()
    erased = BatchAugmentation(**{**OFF, "erase": 1, "erase_sides": (0.5, 0.5)})(x, draws())
    changed = ((erased - x).abs() > 0.1).any(dim=1).float().mean(dim=(1, 2))
    assert (changed <= 0.26).all()
    assert (changed > 0.05).all()


def test_a_samples_draws_alone_decide():
    augment, x, draw = BatchAugmentation(), images(), draws()
    together = augment(x, draw)
    assert together.shape == x.shape
    assert together.min() >= 0
    assert together.max() <= 255
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(augment(x[order], draw[order]), together[order], rtol=0, atol=1e-3)
    torch.testing.assert_close(augment(x[2:3], draw[2:3]), together[2:3], rtol=0, atol=1e-3)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"rotate": -1}, {"erase": -0.1}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BatchAugmentation(**wrong)
