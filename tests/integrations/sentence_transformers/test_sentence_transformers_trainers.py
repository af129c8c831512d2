"""sentence-transformers' own trainers: statistics for the card, several losses, and the trained folder loaded again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_r2d2 import R2D2Model
from tests.helpers import tiny_image, tiny_model, tiny_processor

pytest.importorskip("sentence_transformers")
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder import losses as ranking
from sentence_transformers.sentence_transformer import losses as embedding

from modeling_r2d2.integrations.sentence_transformers import cross_encoder, sentence_transformer

TEXTS = ["一只猫", "两条红色的鱼在水", "船", "马"]
LABELS = [1.0, 0.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def columns(tmp_path_factory) -> dict:
    """Texts, decoded pictures, names of picture files, and labels."""
    place = tmp_path_factory.mktemp("pictures")
    images = [tiny_image(seed) for seed in range(4)]
    paths = [str(place / f"{number}.png") for number in range(4)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    documents = [paths[:2], paths[2:], paths[:2], paths[2:]]
    return {
        "text": TEXTS,
        "image": images,
        "negative": images[::-1],
        "path": paths,
        "documents": documents,
        "label": LABELS,
        "labels": [[1.0, 0.0]] * 4,
    }


def dataset(columns: dict, *names: str) -> Dataset:
    kinds = {"image": ImageColumn(), "negative": ImageColumn(), "label": Value("float32")}
    strings = {name: Value("string") for name in ("text", "path")}
    if "documents" in names:
        return Dataset.from_dict({name: columns[name] for name in names})
    return Dataset.from_dict({n: columns[n] for n in names}, Features({n: ({**kinds, **strings})[n] for n in names}))


def train(model, loss, data: Dataset, output: Path) -> dict:
    ranks = isinstance(model, CrossEncoder)
    arguments = (CrossEncoderTrainingArguments if ranks else SentenceTransformerTrainingArguments)(
        str(output / "run"),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = (CrossEncoderTrainer if ranks else SentenceTransformerTrainer)(
        model, arguments, train_dataset=data, eval_dataset=data, loss=loss(model)
    )
    trainer.train()
    return trainer.evaluate()


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (ranking.BinaryCrossEntropyLoss, ("text", "image", "label")),
        (ranking.BinaryCrossEntropyLoss, ("image", "text", "label")),
        (ranking.BinaryCrossEntropyLoss, ("text", "path", "label")),
        (ranking.MSELoss, ("path", "text", "label")),
        (ranking.MultipleNegativesRankingLoss, ("text", "image")),
        (ranking.CachedMultipleNegativesRankingLoss, ("text", "image", "negative")),
        (ranking.MarginMSELoss, ("text", "image", "negative", "label")),
        (ranking.ListNetLoss, ("text", "documents", "labels")),
        (ranking.LambdaLoss, ("text", "documents", "labels")),
    ],
)
def test_cross_encoder_trainer(loss, names, folder, columns, tmp_path):
    model = cross_encoder(folder, score="match", device="cpu")
    metrics = train(model, loss, dataset(columns, *names), tmp_path)
    assert np.isfinite(metrics["eval_loss"])


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (embedding.MultipleNegativesRankingLoss, ("text", "path")),
        (embedding.TripletLoss, ("text", "image", "negative")),
        (embedding.CoSENTLoss, ("image", "text", "label")),
    ],
)
def test_sentence_transformer_trainer(loss, names, folder, columns, tmp_path):
    model = sentence_transformer(folder, device="cpu")
    metrics = train(model, loss, dataset(columns, *names), tmp_path)
    assert np.isfinite(metrics["eval_loss"])


@pytest.mark.parametrize("kind", ["encoder", "ranker"])
def test_the_trained_folder(kind, folder, columns, tmp_path):
    """Saved with its card by the library, it gives the same again, there and as an R2D2."""
    if kind == "ranker":
        model, cls, loss = cross_encoder(folder, "match", device="cpu"), CrossEncoder, ranking.BinaryCrossEntropyLoss
        names, pairs = ("text", "image", "label"), list(zip(TEXTS, columns["path"], strict=True))
    else:
        model, cls, loss = sentence_transformer(folder, device="cpu"), SentenceTransformer, embedding.CoSENTLoss
        names = ("text", "path", "label")
    train(model, loss, dataset(columns, *names), tmp_path)
    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "tokens" in card  # the statistics of the column of texts
    again = cls(str(tmp_path / "saved"), trust_remote_code=True, device="cpu", local_files_only=True)
    if kind == "ranker":
        np.testing.assert_allclose(again.predict(pairs), model.predict(pairs), atol=1e-5)
        best = again.rank(TEXTS[0], [np.asarray(image) for image in columns["image"]], top_k=2)
        assert len(best) == 2
    else:
        np.testing.assert_allclose(again.encode(columns["image"]), model.encode(columns["path"]), atol=1e-5)
    trained, before = R2D2Model.from_pretrained(tmp_path / "saved"), R2D2Model.from_pretrained(folder)
    moved = [n for n, p in trained.named_parameters() if not torch.equal(p, before.get_parameter(n))]
    assert any(name.startswith("text_image_encoder" if kind == "ranker" else "text_projection") for name in moved)


def test_what_is_no_pair_is_not_ranked(folder, columns):
    model = cross_encoder(folder, device="cpu")
    for inputs in (columns["image"], TEXTS[:3]):
        with pytest.raises(ValueError, match="no pairs|not one text and one picture"):
            model.predict(inputs)
