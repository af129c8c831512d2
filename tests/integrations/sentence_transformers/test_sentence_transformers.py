"""R2D2 as a SentenceTransformer and as a CrossEncoder: the model's own embeddings and match probabilities."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_r2d2 import R2D2ForPreTraining, R2D2Model
from tests.helpers import tiny_image, tiny_model, tiny_processor

pytest.importorskip("sentence_transformers")
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from modeling_r2d2.integrations.sentence_transformers import (
    R2D2Encoder,
    R2D2Ranker,
    cross_encoder,
    sentence_transformer,
)

TEXTS = ["一只猫", "两条红色的鱼在水", "船"]
DOCS = Path(__file__).parents[3] / "docs"


def save(folder, model):
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("model"), tiny_model())


@pytest.fixture(scope="module")
def encoder(folder):
    return sentence_transformer(folder, device="cpu")


@pytest.fixture(scope="module")
def ranker(folder):
    return cross_encoder(folder, score="match", device="cpu")


@pytest.fixture(scope="module")
def pil_images():
    return [tiny_image(seed, width=30 + seed, height=50 - seed) for seed in range(5)]


@pytest.fixture(scope="module")
def expected(folder, pil_images):
    """By the model alone, one input at a time: text and picture embeddings, match probability of every pair."""
    model, processor = R2D2Model.from_pretrained(folder).eval(), tiny_processor()
    probabilities, texts, images = np.zeros((3, 5)), [], []
    with torch.no_grad():
        for i, text in enumerate(TEXTS):
            for j, image in enumerate(pil_images):
                inputs = processor(images=[image], text=[text], return_tensors="pt")
                output = model(**inputs)
                if j == 0:
                    texts.append(output.text_embeds[0].numpy())
                if i == 0:
                    images.append(output.image_embeds[0].numpy())
                matched = model.match(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
                probabilities[i, j] = matched.match_probability.item()
    assert np.ptp(probabilities) > 0.05
    return np.stack(texts), np.stack(images), probabilities


def test_embeddings_are_the_models(encoder, pil_images, expected):
    texts, images = encoder.encode(TEXTS), encoder.encode(pil_images, batch_size=2)
    np.testing.assert_allclose(texts, expected[0], atol=1e-5)
    np.testing.assert_allclose(images, expected[1], atol=1e-5)
    np.testing.assert_allclose(encoder.similarity(texts, images).numpy(), expected[0] @ expected[1].T, atol=1e-5)
    assert encoder.get_embedding_dimension() == texts.shape[1] == 16
    assert encoder.similarity_fn_name == "cosine"
    assert encoder.supports("image")
    assert not encoder.supports("audio")
    np.testing.assert_allclose(encoder.encode(pil_images[3]), expected[1][3], atol=1e-5)  # one picture, not a list


def test_images_of_every_form(encoder, pil_images, expected, tmp_path):
    path = tmp_path / "一只 猫.png"
    pil_images[1].save(path)
    forms = [pil_images[1], path, str(path), np.asarray(pil_images[1]), {"image": pil_images[1]}]
    for form in forms:
        np.testing.assert_allclose(encoder.encode([form])[0], expected[1][1], atol=1e-5)


def test_prompts_go_before_texts_alone(folder, pil_images, expected):
    encoder = sentence_transformer(folder, prompts={"query": "一张图片"}, device="cpu")
    prompted = encoder.encode(["猫"], prompt_name="query")
    np.testing.assert_allclose(prompted, encoder.encode(["一张图片猫"]), atol=1e-6)
    assert np.abs(prompted - encoder.encode(["猫"])).max() > 1e-3
    np.testing.assert_allclose(encoder.encode(pil_images, prompt_name="query"), expected[1], atol=1e-5)


def test_long_texts_are_truncated(folder):
    encoder = sentence_transformer(folder, device="cpu")
    assert encoder.max_seq_length == 16
    encoder.max_seq_length = 6
    np.testing.assert_allclose(encoder.encode(["一只猫在"]), encoder.encode(["一只猫在水火"]), atol=1e-6)
    with pytest.raises(ValueError, match="40 positions"):
        encoder.max_seq_length = 41
    encoder.tokenizer = other = tiny_processor().tokenizer
    assert encoder[0].processor.tokenizer is other


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["cat-that-is-not-there.png"], "no such picture file"),
        (["https://example.org/cat.png"], "not downloaded"),
        ([np.zeros((4, 4, 3), dtype=np.float32)], "uint8"),
        ([3.5], "not float"),
    ],
)
def test_bad_inputs(encoder, inputs, message):
    with pytest.raises(ValueError, match=message):
        encoder.encode(inputs)


def test_mixed_inputs_are_refused(encoder, pil_images):
    with pytest.raises(ValueError, match="one call per modality"):
        encoder.encode(["一只猫", pil_images[0]])
    with pytest.raises(ValueError, match="in one call"):
        encoder[0].preprocess(["一只猫", pil_images[0]])


def test_a_text_that_ends_like_a_file(encoder):
    np.testing.assert_allclose(
        encoder.encode([{"text": "猫.png"}])[0], encoder.encode(["猫.png "])[0], atol=1e-6
    )  # the tokenizer drops the space


def test_ranker_gives_match_probabilities(ranker, pil_images, expected):
    pairs = [(text, image) for text in TEXTS for image in pil_images]
    for batch_size in (4, 32):
        found = ranker.predict(pairs, batch_size=batch_size)
        np.testing.assert_allclose(found.reshape(3, 5), expected[2], atol=1e-5)
    swapped = ranker.predict([(image, text) for text, image in pairs])
    np.testing.assert_allclose(swapped.reshape(3, 5), expected[2], atol=1e-5)
    assert ranker.predict(pairs[0]) == pytest.approx(expected[2][0, 0], abs=1e-5)


def test_rank(ranker, pil_images, expected, tmp_path):
    documents = [*pil_images[:4], str(tmp_path / "last.png")]
    pil_images[4].save(documents[4])
    ranking = ranker.rank(TEXTS[1], documents)
    assert [hit["corpus_id"] for hit in ranking] == np.argsort(-expected[2][1]).tolist()
    assert [hit["score"] for hit in ranking] == pytest.approx(np.sort(expected[2][1])[::-1].tolist(), abs=1e-5)
    captions = ranker.rank(pil_images[2], TEXTS, return_documents=True, top_k=2)  # and captions for a picture
    best = np.argsort(-expected[2][:, 2])[:2]
    assert [hit["text"] for hit in captions] == [TEXTS[place] for place in best]


@pytest.mark.parametrize("rule", [None, "fused", "published"])
def test_both_stages(folder, pil_images, expected, tmp_path, rule):
    """Scores of a search, also where a sigmoid would be 1 for all, and again after saving."""
    texts, images, p = expected
    cosine = texts @ images.T
    tau = R2D2Model.from_pretrained(folder).temperature.item()
    wanted = cosine + p if rule == "published" else cosine / tau + np.log(p / (1 - p))
    model = cross_encoder(folder, rule, device="cpu")
    pairs = [(text, image) for text in TEXTS for image in pil_images]
    np.testing.assert_allclose(model.predict(pairs).reshape(3, 5), wanted, atol=1e-3)
    ranking = model.rank(TEXTS[1], pil_images)
    assert [hit["corpus_id"] for hit in ranking] == np.argsort(-wanted[1]).tolist()
    model.save(str(tmp_path), create_model_card=False)
    again = CrossEncoder(str(tmp_path), trust_remote_code=True, device="cpu", local_files_only=True)
    np.testing.assert_allclose(again.predict(pairs).reshape(3, 5), wanted, atol=1e-3)
    features = model[0].preprocess(pairs[:2])
    if rule == "published":
        with pytest.raises(ValueError, match="cannot be trained"):
            model.train()[0](features)
    else:
        assert model.train()[0](features)["scores"].requires_grad
    with pytest.raises(ValueError, match="score is 'sum'"):
        cross_encoder(folder, "sum", device="cpu")


def test_what_repeats_is_encoded_once(ranker, pil_images):
    features = ranker[0].preprocess([(TEXTS[0], pil_images[0]), (TEXTS[0], pil_images[1]), (TEXTS[2], pil_images[0])])
    assert len(features["input_ids"]) == 2
    assert len(features["pixel_values"]) == 2
    assert features["text_index"].tolist() == [0, 0, 1]
    assert features["image_index"].tolist() == [0, 1, 0]


def test_bad_pairs(ranker, pil_images):
    for pair in (("一只猫", "狗"), (pil_images[0], pil_images[1]), ("一只猫", "gone.png")):
        with pytest.raises(ValueError, match="pair 0 is not|no such picture"):
            ranker.predict([pair])


def test_no_ranker(tmp_path, pil_images):
    folder = save(tmp_path, tiny_model(ranker=False))
    assert sentence_transformer(folder, device="cpu").encode(pil_images[:1]).shape == (1, 16)
    with pytest.raises(ValueError, match="pre-ranking only"):
        cross_encoder(folder)


def test_pre_training_checkpoints_load(tmp_path):
    from tests.tiny import tiny_config

    folder = save(tmp_path, R2D2ForPreTraining(tiny_config(max_text_length=16)))
    assert sentence_transformer(folder, device="cpu").encode(TEXTS).shape == (3, 16)


@pytest.mark.parametrize("kind", ["encoder", "ranker"])
def test_save_and_load(kind, encoder, ranker, folder, pil_images, expected, tmp_path, capfd):
    model = {"encoder": encoder, "ranker": ranker}[kind]
    model.save(str(tmp_path), create_model_card=False)
    assert not list(tmp_path.rglob("*.bin"))
    if kind == "encoder":
        with pytest.raises(ValueError, match="trust_remote_code"):
            SentenceTransformer(str(tmp_path), device="cpu")
        again = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu", local_files_only=True)
        assert type(again[0]) is R2D2Encoder
        np.testing.assert_allclose(again.encode(pil_images), expected[1], atol=1e-5)
    else:
        again = CrossEncoder(str(tmp_path), trust_remote_code=True, device="cpu", local_files_only=True)
        assert type(again[0]) is R2D2Ranker
        found = again.predict([(TEXTS[0], image) for image in pil_images])
        np.testing.assert_allclose(found, expected[2][0], atol=1e-5)
    plain, info = R2D2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with pytest.raises(ValueError, match="pickle"):
        model[0].save(str(tmp_path), safe_serialization=False)


@pytest.mark.parametrize("kind", ["encoder", "ranker"])
def test_folders_of_0_1_name_the_classes_by_another_path(kind, encoder, ranker, tmp_path):
    {"encoder": encoder, "ranker": ranker}[kind].save(str(tmp_path), create_model_card=False)
    named = 0
    for path in tmp_path.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        named += text.count("modeling_r2d2.integrations.")
        path.write_text(text.replace("modeling_r2d2.integrations.", "modeling_r2d2.interoperation."), encoding="utf-8")
    assert named
    load, of = {"encoder": (SentenceTransformer, R2D2Encoder), "ranker": (CrossEncoder, R2D2Ranker)}[kind]
    again = load(str(tmp_path), trust_remote_code=True, device="cpu", local_files_only=True)
    assert type(again[0]) is of


def test_a_loss_of_the_library_trains_it(folder, pil_images):
    """Text and picture columns through MultipleNegativesRankingLoss: finite, and it falls on one batch."""
    model = sentence_transformer(folder, device="cpu").train()
    loss = MultipleNegativesRankingLoss(model)
    features = [model.preprocess(TEXTS), model.preprocess(pil_images[:3])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for _ in range(8):
        value = loss([dict(part) for part in features], None)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


def test_other_backends_are_refused(folder):
    with pytest.raises(ValueError, match="by torch alone"):
        R2D2Encoder.load(folder, backend="onnx")


def test_guide(folder, tmp_path, monkeypatch, pil_images):
    """The guide's code as printed, with a tiny model in place of the demo's."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/demo").symlink_to(folder)
    for name, image in zip(("cat.png", "dog.png"), pil_images, strict=False):
        image.save(name)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "sentence_transformers.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 3
    scope = {}
    for block in blocks:
        exec(compile(block, "sentence_transformers.md", "exec"), scope)


@pytest.mark.parametrize("suffix", ["JPG", "jfif", "heic", "TIFF", "avif", "mpo", "ico", "ppm", "jp2", "svg", "dng"])
def test_a_missing_file_is_no_text(encoder, suffix):
    for name in (f"照片/一只猫.{suffix}", f"cat.{suffix}"):
        with pytest.raises(ValueError, match=f"{re.escape(name)}: no such picture file"):
            encoder.encode([name])
    assert encoder.encode([{"text": f"cat.{suffix}"}]).shape == (1, encoder.get_embedding_dimension())


@pytest.mark.parametrize("suffix", ["jfif", "tif", "ICO", "ppm", "jp2"])
def test_files_of_every_suffix_are_images(encoder, tmp_path, suffix):
    path = tmp_path / f"一只 猫.{suffix}"
    image = tiny_image(3)
    image.save(path, {"jfif": "JPEG", "ICO": "ICO"}.get(suffix))
    from modeling_r2d2.processing.files.images import open_image

    assert np.allclose(encoder.encode([str(path)]), encoder.encode([open_image(path)]), atol=1e-6)
