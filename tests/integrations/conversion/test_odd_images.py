"""Pictures of odd formats, bit for bit as the processor of the source prepares them, for each kind of dual encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoProcessor
from transformers.image_transforms import convert_to_rgb

from modeling_r2d2 import R2D2Processor, R2D2ZeroShotImageClassificationPipeline
from modeling_r2d2.app.decoding import ImageDecoder
from modeling_r2d2.inference.encoding import encode_images, pixels_of
from modeling_r2d2.inference.identity import ModelIdentity
from modeling_r2d2.inference.loading import load_processor
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from modeling_r2d2.model.pipeline_inputs import read_image
from modeling_r2d2.processing.collation import PretrainingDataset
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.gallery import Gallery
from modeling_r2d2.processing.files.images import open_image, opening_of
from modeling_r2d2.search.retriever import R2D2Retriever
from tests.helpers import tiny_processor
from tests.integrations.conversion.dual_encoder_sources import KINDS, save

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "preprocess"
#: What the published models' own preprocessing says, beside what is their class's default.
PUBLISHED = {
    "chinese_clip": {"size": {"height": 224, "width": 224}, "do_center_crop": False},
    "clip": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    "siglip": {"size": {"height": 224, "width": 224}},
    "siglip2": {"size": {"height": 224, "width": 224}, "resample": 2},
    "altclip": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
}
CAMERA = Image.Exif()
CAMERA[0x0112] = 6


def save_images(folder: Path) -> list[str]:
    """Files of as many formats and modes as pictures come in; their names."""
    photo = Image.open(GOLDEN / "portrait.png").convert("RGB")
    drawing = Image.open(GOLDEN / "rgba.png")
    assert drawing.mode == "RGBA"
    gray = photo.convert("L")
    soft = np.linspace(0, 255, photo.width * photo.height).reshape(photo.height, photo.width).astype(np.uint8)
    translucent = Image.merge("RGBA", (*photo.split(), Image.fromarray(soft)))
    palette = photo.quantize(16)
    steps = [translucent.rotate(90 * turn) for turn in range(3)]
    saved = {
        "rgba.png": (drawing, {}),
        "translucent.png": (translucent, {}),
        "translucent.webp": (translucent, {"lossless": True}),
        "translucent.tif": (translucent, {}),
        "translucent.jp2": (translucent, {}),
        "translucent.ico": (translucent, {"sizes": [(64, 64)]}),
        "la.png": (translucent.convert("LA"), {}),
        "palette_index.png": (palette, {"transparency": 3}),
        "palette_bytes.png": (palette, {"transparency": bytes(range(0, 256, 16))}),
        "rgb_color.png": (photo, {"transparency": photo.getpixel((5, 5))}),
        "gray_value.png": (gray, {"transparency": 40}),
        "gray.png": (gray, {}),
        "one_bit.png": (photo.convert("1"), {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "progressive.jpg": (photo, {"progressive": True}),
        "gray.jpg": (gray, {"quality": 30}),
        "animated.gif": (steps[0], {"save_all": True, "append_images": steps[1:]}),
        "animated.webp": (steps[0], {"save_all": True, "append_images": steps[1:]}),
        "palette.bmp": (palette, {}),
        "plain.webp": (photo, {"quality": 60}),
        "plain.avif": (photo, {}),
        "plain.ppm": (photo, {}),
        "cmyk.tif": (photo.convert("CMYK"), {"compression": "tiff_lzw"}),
        "lab.tif": (Image.merge("LAB", photo.split()), {}),
        "one_pixel.png": (drawing.resize((1, 1)), {}),
        "2x3.png": (photo.resize((2, 3)), {}),
        "3x1.png": (drawing.resize((3, 1)), {}),
        "wide.png": (translucent.resize((1200, 20)), {}),
        "tall.jpg": (photo.resize((20, 1200)), {}),
        "large.jpg": (photo.resize((2000, 1500)), {"quality": 50}),
    }
    for name, (image, options) in saved.items():
        image.save(folder / name, **options)
    return list(saved)


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    names = save_images(folder)
    modes = {Image.open(folder / name).mode for name in names}
    assert {"RGBA", "LA", "P", "L", "1", "CMYK", "RGB", "LAB"} <= modes
    return [folder / name for name in names]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders of sources whose pictures are prepared as those of the published models."""
    root = tmp_path_factory.mktemp("sources")
    for kind in KINDS:
        place = save(root / kind, kind) / "processor_config.json"
        values = json.loads(place.read_text(encoding="utf-8"))
        values["image_processor"].update(PUBLISHED[kind])
        place.write_text(json.dumps(values), encoding="utf-8")
    return {kind: root / kind for kind in KINDS}


def pixels(processor, image) -> torch.Tensor:
    return processor(images=[image], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_images_are_prepared_as_the_source_does(sources, odd_images, kind, tmp_path):
    own = AutoImageProcessor.from_pretrained(sources[kind])
    direct = load_processor(R2D2Processor, sources[kind])
    convert_dual_encoder_to_folder(sources[kind], tmp_path / "out")
    converted = AutoProcessor.from_pretrained(tmp_path / "out")
    assert len(odd_images) >= 30
    for path in odd_images:
        expected = pixels(own, Image.open(path))
        for ours in (
            pixels(direct, Image.open(path)),
            pixels(converted, path),
            pixels_of(path.read_bytes(), converted)[None],
            pixels(converted.image_processor, read_image(str(path), **opening_of(converted.image_processor))),
        ):
            assert torch.equal(ours, expected), path.name


@pytest.mark.parametrize("kind", KINDS)
def test_where_this_package_reads_an_image_otherwise(sources, kind, tmp_path):
    """A photograph is turned upright, unless told otherwise, and 16 bits are brought to 8, which the source's processor
    clips to white; from there on the pixels are the source's."""
    own, ours = AutoImageProcessor.from_pretrained(sources[kind]), load_processor(R2D2Processor, sources[kind])
    photo = Image.open(GOLDEN / "portrait.png").convert("RGB")
    photo.save(tmp_path / "camera.jpg", exif=CAMERA)
    stored = Image.open(tmp_path / "camera.jpg")
    expected = pixels(own, ImageOps.exif_transpose(stored))
    assert torch.equal(pixels(ours, stored), expected)
    assert torch.equal(pixels(ours, tmp_path / "camera.jpg"), expected)
    convert_dual_encoder_to_folder(sources[kind], tmp_path / "out", exif_transpose=False)
    assert torch.equal(pixels(AutoProcessor.from_pretrained(tmp_path / "out"), stored), pixels(own, stored))
    values = np.asarray(photo.convert("L")).astype(np.uint16)
    Image.fromarray(values * 257).save(tmp_path / "deep.png")
    deep = Image.open(tmp_path / "deep.png")
    assert deep.mode == "I;16"
    assert torch.equal(pixels(ours, deep), pixels(own, Image.fromarray(values.astype(np.uint8))))
    assert pixels(own, deep).std() < 0.2 * pixels(ours, deep).std()


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Transparent drawings with black under what is transparent, as files, and a list of pairs."""
    folder = tmp_path_factory.mktemp("drawings")
    lines = []
    for number, text in enumerate("猫狗马鱼"):
        rng = np.random.default_rng(number)
        opaque = rng.integers(0, 256, (5, 5, 4), dtype=np.uint8) * np.array([1, 1, 1, 0], dtype=np.uint8)
        opaque[1:3, 1 : 3 + number % 2, 3] = 255
        Image.fromarray(opaque).resize((40, 30), Image.Resampling.NEAREST).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}, ensure_ascii=False))
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_the_background_holds_everywhere(drawings, tmp_path):
    """Training, evaluation, index, page and pipelines put transparent pictures on what the processor says."""
    folder = save(tmp_path / "source", "chinese_clip")
    model, processor = load_model(folder)
    files = [drawings / f"{number}.png" for number in range(4)]
    background = opening_of(processor)["background"]
    assert background == ("white" if np.asarray(convert_to_rgb(Image.new("RGBA", (1, 1)))).any() else None)
    processor.image_processor.background = "#00ff80"
    seen = [open_image(file, background="#00ff80") for file in files]
    expected = encode_images(model, processor, seen).embeds
    assert (expected - encode_images(model, processor, [open_image(file) for file in files]).embeds).abs().max() > 0.01

    def agree(found):
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=1e-6)

    agree(encode_images(model, processor, files).embeds)
    agree(encode_images(model, processor, [Image.open(file) for file in files]).embeds)
    pairs = load_pairs(drawings / "pairs.jsonl")
    agree(encode_images(model, processor, Gallery.from_pairs(pairs).images).embeds)
    trained = PretrainingDataset(pairs, processor)
    for number, image in enumerate(seen):
        assert np.array_equal(trained[number]["pixel_values"], image.resize((32, 32), Image.Resampling.BICUBIC))
    assert pairs.background is None, "the caller's own set is as it was"
    pairs.background = "blue"
    own = PretrainingDataset(pairs, processor)[0]["pixel_values"]
    blue = open_image(files[0], background="blue").resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(own, blue), "what the user says of the pictures goes first"
    R2D2Retriever.build(drawings, model, tmp_path / "index", processor=processor)
    retriever = R2D2Retriever.open(tmp_path / "index", model, processor)
    for file, result in zip(files, retriever.search(images=files, top_k=1), strict=True):
        assert (result.hits[0].id, result.hits[0].cosine) == (file.name, pytest.approx(1, abs=1e-5))
    decoder = ImageDecoder(processes=1)
    agree(encode_images(model, processor, [decoder.open(file, **opening_of(processor)) for file in files]).embeds)
    decoder.close()
    parts = {"model": model, "tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    classify = R2D2ZeroShotImageClassificationPipeline(**parts)
    for file, image in zip(files, seen, strict=True):
        assert classify(str(file), candidate_labels=["猫", "狗"]) == classify(image, candidate_labels=["猫", "狗"])


def test_the_background_is_kept_and_checked(tmp_path):
    processor = R2D2Processor.build(tiny_processor().tokenizer, 32, 16, background="white")
    processor.save_pretrained(tmp_path)
    loaded = R2D2Processor.from_pretrained(tmp_path)
    assert opening_of(loaded) == {"exif_transpose": True, "background": "white"}
    model, _ = load_model(save(tmp_path / "source", "chinese_clip"))
    assert ModelIdentity.of(model, loaded).preprocessing != ModelIdentity.of(model, tiny_processor()).preprocessing
    for wrong in ("whit", [1, 2], 7, [0, 0, 300]):
        with pytest.raises(ValueError, match="background of the image processor is .* no color"):
            R2D2Processor.build(tiny_processor().tokenizer, 32, 16, background=wrong)


def test_without_a_background_files_and_images_lose_their_alpha_alike(drawings):
    """Also where a color is transparent, which PIL takes along into RGB."""
    processor = tiny_processor()
    palette = Image.open(drawings / "0.png").convert("RGB").quantize(8)
    palette.save(drawings / "palette.gif", transparency=0)
    palette.convert("RGB").save(drawings / "rgb.png", transparency=palette.convert("RGB").getpixel((0, 0)))
    for name in ("0.png", "palette.gif", "rgb.png"):
        opaque = Image.fromarray(np.asarray(open_image(drawings / name)))
        for image in (Image.open(drawings / name), drawings / name):
            assert torch.equal(pixels(processor, image), pixels(processor, opaque)), name
