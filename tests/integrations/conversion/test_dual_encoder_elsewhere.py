"""Converted dual encoders in other libraries: sentence-transformers, and processes without this package."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_r2d2 import R2D2ZeroShotImageClassificationPipeline
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from tests.helpers import tiny_image
from tests.integrations.conversion.dual_encoder_sources import KINDS, own_inputs, save
from tests.test_remote_code import LABELS, TEXTS, fresh_process

PADDED = ("siglip", "siglip2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`<kind>` and `<kind>-converted`, and picture.png."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for kind in KINDS:
        convert_dual_encoder_to_folder(save(folder / kind, kind), folder / f"{kind}-converted")
    tiny_image().save(folder / "picture.png")
    return folder


def own_output(root, kind: str, texts: list[str]):
    """Of the source's own class and processor."""
    own, processor = AutoModel.from_pretrained(root / kind).eval(), AutoProcessor.from_pretrained(root / kind)
    inputs = own_inputs(kind, processor, [tiny_image()], texts)
    if kind != "chinese_clip":
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return own(**inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers(root, kind, tmp_path):
    """From the source, the converted folder and what sentence-transformers saved of it."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    from modeling_r2d2.integrations.sentence_transformers import sentence_transformer

    expected = own_output(root, kind, TEXTS)
    direct, encoder = (sentence_transformer(root / name, device="cpu") for name in (kind, f"{kind}-converted"))
    encoder.save_pretrained(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    for each in (direct, encoder, saved):
        np.testing.assert_allclose(each.encode(TEXTS), expected.text_embeds, atol=1e-5)
        np.testing.assert_allclose(each.encode([tiny_image()]), expected.image_embeds, atol=1e-5)
    if kind in PADDED:
        with pytest.raises(ValueError, match="reads its padding, so it stays at 16"):
            encoder.max_seq_length = 6
    else:
        encoder.max_seq_length = 6


@pytest.mark.parametrize("kind", KINDS)
def test_zero_shot(root, kind):
    prompts = [f"一张{label}的图片" for label in LABELS]
    scores = own_output(root, kind, prompts).logits_per_image.softmax(dim=-1)[0].tolist()
    model, processor = load_model(root / f"{kind}-converted")
    classify = R2D2ZeroShotImageClassificationPipeline(
        model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor
    )
    found = {each["label"]: each["score"] for each in classify(tiny_image(), candidate_labels=LABELS)}
    assert found == pytest.approx(dict(zip(LABELS, scores, strict=True)), abs=1e-5)


def test_in_a_fresh_process_without_the_package(root, tmp_path):
    """By `trust_remote_code`. The library's own pipeline pads to the longest label, which a tower that reads padding
    does not take."""
    result = fresh_process(
        root,
        f"""
        result = {{}}
        for kind in {KINDS!r}:
            place = folder / f"{{kind}}-converted"
            model, processor = AutoModel.from_pretrained(place, **trust), AutoProcessor.from_pretrained(place, **trust)
            classify = pipeline("zero-shot-image-classification", model=str(place), **trust)
            try:
                scores = classify(picture, candidate_labels=LABELS, hypothesis_template="一张{{}}的图片")
            except ValueError as error:
                scores = str(error)
            result[kind] = {{"logits": logits(model, processor), "scores": scores}}
        """,
        tmp_path,
    )
    for kind in KINDS:
        expected = own_output(root, kind, TEXTS).logits_per_image
        torch.testing.assert_close(torch.tensor(result[kind]["logits"]), expected, rtol=0, atol=1e-5)
        scores = result[kind]["scores"]
        if kind in PADDED:
            assert "R2D2ZeroShotImageClassificationPipeline pad so" in scores
        else:
            assert {each["label"] for each in scores} == set(LABELS)
