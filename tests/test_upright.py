"""Photographs upright, everywhere: each part of the package sees a stored photograph as it sees its upright view, or,
where the processor says so, as it is stored."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_r2d2 import R2D2Model, R2D2Processor
from modeling_r2d2.evaluation.retrieval import evaluate_retrieval
from modeling_r2d2.inference.encoding import encode_images
from modeling_r2d2.inference.identity import ModelIdentity, OtherModelError
from modeling_r2d2.model.pipeline_image_text_matching import R2D2ImageTextMatchingPipeline
from modeling_r2d2.model.pipeline_zero_shot_image_classification import R2D2ZeroShotImageClassificationPipeline
from modeling_r2d2.processing.collation import PretrainingDataset, StreamingPretrainingDataset
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.gallery import Gallery
from modeling_r2d2.processing.files.images import as_processor_reads, open_image, turns_upright
from modeling_r2d2.search.retriever import R2D2Retriever
from tests.helpers import save_tiny_model, tiny_image, tiny_processor

COUNT = 9
# how a camera stores a picture whose orientation it writes into the file: the inverse of what turns it upright
STORE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
TEXTS = [f"{a}{b}" for a, b in zip("猫狗马鱼船车花草鸟", "红黄蓝白黑大小山水", strict=True)]


def upright(number: int) -> Image.Image:
    return tiny_image(number, width=40, height=26)


def photograph(number: int) -> bytes:
    """The same as a file, lying as its orientation says."""
    orientation = 1 + number % 8
    image = upright(number)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    (image.transpose(STORE[orientation]) if orientation > 1 else image).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of photographs and `captions.jsonl`."""
    folder = tmp_path_factory.mktemp("photographs")
    lines = []
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(photograph(number))
        lines.append(json.dumps({"image": f"{number}.png", "text": TEXTS[number]}, ensure_ascii=False))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(model_folder):
    return R2D2Model.from_pretrained(model_folder).eval()


def authors_processor() -> R2D2Processor:
    return R2D2Processor.build(tiny_processor().tokenizer, 32, 16, exif_transpose=False)


@pytest.fixture(scope="module", params=["upright", "stored"])
def processor(request):
    """Ours, and the authors' way."""
    return tiny_processor() if request.param == "upright" else authors_processor()


def expected_image(number: int, processor) -> Image.Image:
    if turns_upright(processor):
        return upright(number)
    stored = Image.open(io.BytesIO(photograph(number)))
    return Image.fromarray(np.asarray(stored))


def expected_pixels(processor) -> torch.Tensor:
    images = [expected_image(number, processor) for number in range(COUNT)]
    return processor(images=images, return_tensors="pt")["pixel_values"]


def expected_embeds(model, processor) -> torch.Tensor:
    with torch.no_grad():
        return torch.nn.functional.normalize(model.get_image_features(expected_pixels(processor)).pooler_output)


def test_the_two_ways_differ(model):
    """Else the tests below would show nothing."""
    cosine = (expected_embeds(model, tiny_processor()) * expected_embeds(model, authors_processor())).sum(dim=1)
    assert cosine[0] > 0.999
    assert (cosine[1:8] < 0.995).all()


class TestRetrieval:
    def test_a_photograph_is_its_own_best_hit(self, model, processor, photographs, tmp_path):
        R2D2Retriever.build(photographs, model, tmp_path / "index", processor=processor)
        retriever = R2D2Retriever.open(tmp_path / "index", model, processor)
        for query in (
            [photographs / f"{number}.png" for number in range(COUNT)],
            [Image.open(photographs / f"{number}.png") for number in range(COUNT)],
            [expected_image(number, processor) for number in range(COUNT)],
        ):
            for number, result in enumerate(retriever.search(images=query, top_k=1)):
                assert result.hits[0].id == f"{number}.png"
                assert result.hits[0].cosine == pytest.approx(1, abs=1e-5)
        hit = retriever.search(images=photographs / "5.png", top_k=1)[0].hits[0]
        assert np.array_equal(hit.image.open(), upright(5)), "shown upright in either case"

    def test_ranking_reads_the_same(self, model, processor, photographs, tmp_path):
        """What is kept for the ranker, and what is encoded again for it, give the probabilities of `match`."""
        found = []
        for keep in ("states", "none"):
            place = tmp_path / keep
            R2D2Retriever.build(photographs, model, place, processor=processor, keep=keep, precision="float32")
            retriever = R2D2Retriever.open(place, model, processor)
            result = retriever.search(TEXTS[0], candidates=COUNT, top_k=COUNT)[0]
            found.append({hit.id: hit.match_probability for hit in result.hits})
        paths = [photographs / f"{number}.png" for number in range(COUNT)]
        matched = R2D2Retriever(model, processor).match(paths, [TEXTS[0]]).match_probability[:, 0]
        for number in range(COUNT):
            for probabilities in found:
                assert probabilities[f"{number}.png"] == pytest.approx(float(matched[number]), abs=1e-4)

    def test_match_agrees_with_the_pipeline(self, model, processor, photographs):
        path = str(photographs / "5.png")
        parts = {"model": model, "tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
        match = R2D2ImageTextMatchingPipeline(**parts)
        matched = R2D2Retriever(model, processor).match(path, TEXTS)
        for text, probability, cosine in zip(TEXTS, matched.match_probability[0], matched.cosine[0], strict=True):
            found = match((path, text))
            assert found["match_probability"] == pytest.approx(float(probability), abs=1e-5)
            assert found["cosine"] == pytest.approx(float(cosine), abs=1e-5)
        classify = R2D2ZeroShotImageClassificationPipeline(**parts)
        seen, expected = (classify(image, candidate_labels=TEXTS) for image in (path, expected_image(5, processor)))
        assert [each["label"] for each in seen] == [each["label"] for each in expected]
        assert [each["score"] for each in seen] == pytest.approx([each["score"] for each in expected], abs=1e-5)

    def test_heat_maps_lie_over_what_was_looked_at(self, model, processor, photographs):
        found = R2D2Retriever(model, processor).heat_map(photographs / "5.png", TEXTS[0])
        assert np.array_equal(found.image, expected_image(5, processor))

    def test_an_index_of_the_other_way_is_refused(self, model, photographs, tmp_path):
        R2D2Retriever.build(photographs, model, tmp_path / "index", processor=tiny_processor())
        with pytest.raises(OtherModelError, match=r"upright.*r2d2 index .* --model .* --output"):
            R2D2Retriever.open(tmp_path / "index", model, authors_processor())

    def test_an_index_from_before_is_refused(self, model, monkeypatch):
        """Its identity does not speak of orientation, and its photographs lie as they were stored."""
        now = ModelIdentity.of(model, tiny_processor())
        monkeypatch.setattr("modeling_r2d2.inference.identity.canonical", _without_orientation)
        before = ModelIdentity.of(model, tiny_processor())
        assert before.weights == now.weights
        with pytest.raises(OtherModelError, match="before photographs were turned upright"):
            before.refuse_other(now, "index", "r2d2 index …")


def _without_orientation(value) -> bytes:
    value = {name: each for name, each in value.items() if name != "exif_transpose"}
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()


class TestReaders:
    @pytest.fixture(scope="class", params=["jsonl", "parquet of bytes", "saved data set", "tar"])
    @staticmethod
    def pairs(request, photographs, tmp_path_factory):
        folder = tmp_path_factory.mktemp("collection")
        numbers = range(COUNT)
        if request.param == "jsonl":
            return load_pairs(photographs / "captions.jsonl")
        if request.param == "tar":
            with tarfile.open(folder / "0.tar", "w") as archive:
                for number in numbers:
                    for suffix, data in (("png", photograph(number)), ("txt", TEXTS[number].encode())):
                        member = tarfile.TarInfo(f"{number}.{suffix}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
            return load_pairs(folder / "0.tar")
        datasets = pytest.importorskip("datasets")
        rows = {"image": [{"bytes": photograph(n), "path": f"{n}.png"} for n in numbers], "text": TEXTS}
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        rows = datasets.Dataset.from_dict(rows, features=features)
        if request.param == "saved data set":
            rows.save_to_disk(folder / "saved")
            return load_pairs(folder / "saved")
        rows.to_parquet(folder / "rows.parquet")
        return load_pairs(folder / "rows.parquet")

    def test_training_reads_as_the_processor_says(self, pairs, processor):
        """Pixels of training, before normalisation, are those of the processor."""
        streamed = not hasattr(pairs, "__len__")
        data = (StreamingPretrainingDataset if streamed else PretrainingDataset)(pairs, processor)
        samples = list(data) if streamed else [data[place] for place in range(COUNT)]
        size = (32, 32)
        for number, sample in enumerate(samples):
            expected = expected_image(number, processor).resize(size, Image.Resampling.BICUBIC)
            assert np.array_equal(sample["pixel_values"], expected)
        assert pairs.exif_transpose, "the caller's own set is as it was"

    def test_reading_pairs_gives_them_upright(self, pairs):
        for number, pair in enumerate(pairs):
            if number == COUNT:
                break
            assert np.array_equal(pair["image"], upright(number))


def test_wrapped_sets_follow_the_processor(photographs):
    from modeling_r2d2.finetuning.data import ClassPairs, UniformNegatives

    pairs = load_pairs(photographs / "captions.jsonl")
    for wrapped in (ClassPairs(pairs, TEXTS), UniformNegatives(pairs, pairs.image_ids())):
        for processor in (authors_processor(), tiny_processor()):
            image = as_processor_reads(wrapped, processor)[5]["image"]
            assert np.array_equal(image, expected_image(5, processor))
    assert as_processor_reads([1, 2], authors_processor()) == [1, 2]


def test_pretrain_keeps_the_choice(model_folder, photographs, tmp_path):
    from typer.testing import CliRunner

    from modeling_r2d2.cli import app

    command = ["pretrain", "--data", str(photographs / "captions.jsonl"), "--model", str(model_folder)]
    command += ["--output", str(tmp_path / "run"), "--no-exif-transpose", "--steps", "1", "--batch-size", "2"]
    command += ["--workers", "0", "--no-augment", "--no-distil", "--mask-ratio", "0", "--save-every", "0"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert not turns_upright(R2D2Processor.from_pretrained(tmp_path / "run"))
    assert turns_upright(R2D2Processor.from_pretrained(model_folder))


class TestEvaluation:
    def test_recall_of_drawings_stored_with_orientation_6(self, model, tmp_path):
        """Every figure is that of the same 40 drawings stored upright."""
        exif, figures = Image.Exif(), []
        exif[0x0112] = 6
        texts = [first + second for first in "猫狗马鱼鸟" for second in "红黄蓝白黑大小两"]
        for name, turn in (("upright", None), ("stored", STORE[6])):
            lines = []
            for number, text in enumerate(texts):
                drawing = upright(number)
                file = tmp_path / f"{name}{number}.png"
                drawing.save(file) if turn is None else drawing.transpose(turn).save(file, exif=exif)
                lines.append(json.dumps({"image": file.name, "text": text}))
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
            gallery = Gallery.from_pairs(load_pairs(tmp_path / f"{name}.jsonl"))
            found = evaluate_retrieval(model, tiny_processor(), gallery.images, gallery.texts, candidates=8)
            figures.append(found.to_dict())
        assert figures[0] == figures[1]

    def test_galleries(self, model, processor, photographs):
        images = Gallery.from_pairs(load_pairs(photographs / "captions.jsonl")).images
        found = encode_images(model, processor, images, keep_states=False).embeds
        assert torch.allclose(found, expected_embeds(model, processor), atol=1e-5)
        paths = [photographs / f"{number}.png" for number in range(COUNT)]
        assert torch.allclose(encode_images(model, processor, paths).embeds, found, atol=1e-5)

    def test_part_of_a_set(self, processor, photographs):
        pairs = as_processor_reads(load_pairs(photographs / "captions.jsonl"), processor).select([5, 6])
        assert np.array_equal(pairs.image(0), expected_image(5, processor))

    def test_export_measures_on_what_the_tower_sees(self, processor, photographs):
        from modeling_r2d2.integrations.onnx_export import _batches

        paths = [photographs / f"{number}.png" for number in range(COUNT)]
        pixels = torch.cat([batch["pixel_values"] for batch in _batches(processor, paths)])
        assert torch.allclose(pixels, expected_pixels(processor))


def test_sentence_transformers(model_folder, photographs, model, tmp_path):
    pytest.importorskip("sentence_transformers")
    from modeling_r2d2.integrations.sentence_transformers import sentence_transformer

    R2D2Model.from_pretrained(model_folder).save_pretrained(tmp_path)
    authors_processor().save_pretrained(tmp_path)
    paths = [str(photographs / f"{number}.png") for number in range(COUNT)]
    for folder, processor in ((model_folder, tiny_processor()), (tmp_path, authors_processor())):
        encoder = sentence_transformer(folder, device="cpu")
        assert np.allclose(encoder.encode(paths), expected_embeds(model, processor).numpy(), atol=1e-5)


def test_the_choice_is_kept_with_the_processor(tmp_path):
    authors_processor().save_pretrained(tmp_path)
    loaded = R2D2Processor.from_pretrained(tmp_path)
    assert not turns_upright(loaded)
    assert turns_upright(tiny_processor())
    image = Image.open(io.BytesIO(photograph(5)))
    for processor in (loaded, tiny_processor()):
        plain = open_image(image, exif_transpose=turns_upright(processor))
        seen = processor(images=[image, plain], return_tensors="pt")["pixel_values"]
        assert torch.equal(seen[0], seen[1])
