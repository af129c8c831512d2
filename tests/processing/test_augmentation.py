"""Augmentation: what each operation does, and that the generator alone decides."""

import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from modeling_r2d2.processing.augmentation import OPERATIONS, WHITE, R2D2Augmentation, affine, random_resized_crop


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def image_of(width: int = 48, height: int = 48, seed: int = 0) -> Image.Image:
    small = rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


class TestAffine:
    def test_identity(self):
        assert np.array_equal(pixels(affine(image_of(), ((1, 0), (0, 1)))), pixels(image_of()))

    def test_turns_and_mirrors_about_the_center(self):
        image = image_of(48, 48)
        assert np.array_equal(pixels(affine(image, ((-1, 0), (0, 1)))), pixels(ImageOps.mirror(image)))
        assert np.array_equal(pixels(affine(image, ((-1, 0), (0, -1)))), pixels(image.rotate(180)))
        quarter = affine(image, ((0, 1), (-1, 0)))
        assert np.array_equal(pixels(quarter), pixels(image.transpose(Image.Transpose.ROTATE_90)))

    def test_shift_moves_the_content(self):
        moved = pixels(affine(image_of(40, 30), ((1, 0, 5), (0, 1, -2)), fill=(1, 2, 3)))
        assert np.array_equal(moved[:28, 5:], pixels(image_of(40, 30))[2:, :35])
        assert (moved[:, :5] == (1, 2, 3)).all()


class TestOperations:
    """At magnitude 10 (strength 1) and sign +1 unless said otherwise."""

    def test_the_papers_list(self):
        names = "autocontrast brightness equalize identity rotate sharpness shear_x shear_y translate_x translate_y"
        assert " ".join(sorted(OPERATIONS)) == names

    @pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize"}))
    def test_strength_zero_changes_nothing(self, name):
        assert np.array_equal(pixels(OPERATIONS[name](image_of(), 0.0, 1, WHITE)), pixels(image_of()))

    @pytest.mark.parametrize(("sign", "factor"), [(1, 1.45), (-1, 0.55)])
    def test_brightness_at_magnitude_5(self, sign, factor):
        expected = np.clip(pixels(image_of()) * factor, 0, 255)
        assert np.abs(pixels(OPERATIONS["brightness"](image_of(), 0.5, sign, WHITE)) - expected).max() <= 1

    def test_translate(self):
        moved = pixels(OPERATIONS["translate_x"](image_of(50, 40), 1.0, 1, WHITE))
        assert np.array_equal(moved[:, 10:], pixels(image_of(50, 40))[:, :40])
        assert (moved[:, :10] == 255).all()
        moved = pixels(OPERATIONS["translate_y"](image_of(50, 40), 0.5, -1, WHITE))
        assert np.array_equal(moved[:36], pixels(image_of(50, 40))[4:])

    def test_shear_moves_rows_by_their_height(self):
        stripe = Image.new("RGB", (41, 41), "black")
        stripe.paste((255, 255, 255), (20, 0, 21, 41))
        for sign in (1, -1):
            sheared = pixels(OPERATIONS["shear_x"](stripe, 1.0, sign, (0, 0, 0)))[..., 0]
            # output x = x + 0.3 y about the centre
            found = [float((row * np.arange(41)).sum() / row.sum()) for row in sheared]
            expected = 20 + sign * 0.3 * (np.arange(41) - 20)
            assert np.abs(np.array(found) - expected).max() < 0.6

    def test_rotate(self):
        expected = image_of().rotate(15, Image.Resampling.BICUBIC, fillcolor=WHITE)
        assert np.array_equal(pixels(OPERATIONS["rotate"](image_of(), 0.5, 1, WHITE)), pixels(expected))

    def test_contrast_operations(self):
        pale = Image.fromarray((pixels(image_of()) // 4 + 90).astype(np.uint8))
        for name in ("autocontrast", "equalize"):
            changed = pixels(OPERATIONS[name](pale, 0.5, 1, WHITE))
            assert changed.min() == 0
            assert changed.max() == 255

    def test_sharpness(self):
        variation = [
            np.abs(np.diff(pixels(OPERATIONS["sharpness"](image_of(), 1.0, sign, WHITE)), axis=1)).sum()
            for sign in (-1, 1)
        ]
        assert variation[0] < np.abs(np.diff(pixels(image_of()), axis=1)).sum() < variation[1]


class TestR2D2Augmentation:
    def test_defaults_are_the_papers(self):
        augment = R2D2Augmentation()
        assert (augment.scale, augment.flip, augment.num_ops, augment.magnitude) == ((0.5, 1.0), 0.5, 2, 5)
        assert augment.operations == tuple(OPERATIONS)

    @pytest.mark.parametrize("size", [(48, 48), (100, 30), (7, 90), (1, 1)])
    def test_any_image_becomes_a_square(self, size):
        for seed in range(20):
            image = R2D2Augmentation(size=32)(image_of(*size), rng(seed))
            assert image.size == (32, 32)
            assert image.mode == "RGB"

    def test_generator_decides(self):
        augment = R2D2Augmentation(size=32)
        first = [pixels(augment(image_of(), rng(seed))) for seed in range(8)]
        again = [pixels(augment(image_of(), rng(seed))) for seed in range(8)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert len({a.tobytes() for a in first}) == 8

    def test_crop_keeps_the_stated_area(self, monkeypatch):
        boxes = []
        monkeypatch.setattr(
            Image.Image, "resize", lambda self, size, resample=None, box=None: boxes.append(box) or self
        )
        image, generator = Image.new("RGB", (200, 160)), rng()
        for _ in range(500):
            random_resized_crop(image, generator, 32)
        shares = [(x1 - x0) * (y1 - y0) / 32000 for x0, y0, x1, y1 in boxes]
        aspects = [(x1 - x0) / (y1 - y0) for x0, y0, x1, y1 in boxes]
        assert 0.49 < min(shares) < 0.53
        assert 0.95 < max(shares) <= 1.0
        assert min(aspects) > 0.74
        assert max(aspects) < 1.35
        assert all(0 <= x0 < x1 <= 200 and 0 <= y0 < y1 <= 160 for x0, y0, x1, y1 in boxes)

    def test_plain_settings_only_resize(self):
        augment = R2D2Augmentation(size=32, scale=(1, 1), ratio=(1, 1), flip=0, operations=("identity",))
        expected = image_of().resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels(augment(image_of(), rng())), pixels(expected))

    @pytest.mark.parametrize("wrong", [{"operations": ("solarize",)}, {"magnitude": 11}, {"scale": (0, 1)}])
    def test_wrong_settings(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            R2D2Augmentation(**wrong)


def test_fast():
    """Below a millisecond for a picture of 72 px, best of several since the machine is shared."""
    augment = R2D2Augmentation(size=48)
    image, generator, times = image_of(72, 72), rng(), []
    for _ in range(5):
        start = time.process_time()
        for _ in range(40):
            augment(image, generator)
        times.append((time.process_time() - start) / 40)
    assert min(times) < 1e-3
