"""Sources as their repositories hold them: weights of torch with buffers, settings of older releases, a vocabulary
alone; and training sees the pixels that the source's own processor makes."""

import json

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from modeling_r2d2.processing.collation import PretrainingDataset, R2D2PretrainingCollator
from tests.helpers import tiny_image
from tests.integrations.conversion.dual_encoder_sources import CROPPED, SIDE, SQUARE, build, own_inputs

TEXTS = ["一只猫", "cat"]
MEAN = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
CLIP = {"do_resize": True, "do_normalize": True, "do_center_crop": True, "resample": 3, **MEAN}
PREPROCESSING = {
    # squashed, and then the center cropped out of as much
    "chinese_clip": {
        **CLIP,
        "feature_extractor_type": "ChineseCLIPFeatureExtractor",
        "size": SQUARE,
        "crop_size": SQUARE,
    }
    | {"image_processor_type": "ChineseCLIPImageProcessor", "do_rescale": True, "rescale_factor": 1 / 255},
    "clip": {**CLIP, "feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE, "crop_size": SIDE},
    "altclip": {
        **CLIP,
        **CROPPED,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "processor_class": "AltCLIPProcessor",
    }
    | {"image_processor_type": "CLIPImageProcessor"},
    "siglip2": {"do_convert_rgb": None, "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2}
    | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "size": SQUARE}
    | {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"},
}
#: What releases of long ago wrote into each part of a configuration.
OLD = {"add_cross_attention": False, "bad_words_ids": None, "do_sample": False, "num_beams": 1, "temperature": 1.0}
OLD |= {"torch_dtype": None, "torchscript": False, "pruned_heads": {}, "position_embedding_type": "absolute"}


@pytest.fixture(scope="module", params=list(PREPROCESSING))
def source(request, tmp_path_factory):
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    model, processor = build(kind)
    tensors = model.state_dict()
    tensors["text_model.embeddings.position_ids"] = torch.arange(40)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    values = json.loads(model.config.to_json_string(use_diff=False))
    for part in ("text_config", "vision_config"):
        values[part] |= OLD
    if kind == "clip":  # which CLIP's first releases called its end token, 49407 in fact
        values["text_config"]["eos_token_id"] = 2
    values |= {"text_config_dict": None, "vision_config_dict": None, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING[kind]), encoding="utf-8")
    vocabulary = processor.tokenizer.get_vocab()
    if kind == "chinese_clip":
        words = sorted(vocabulary, key=lambda word: vocabulary[word])
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    else:
        processor.tokenizer.save_pretrained(folder)
    return kind, folder


def test_they_are_taken_over(source, tmp_path):
    kind, folder = source
    report = convert_dual_encoder_to_folder(folder, tmp_path / "out")
    assert all("position_ids" in name for name in report.unused)
    images = [tiny_image(0), tiny_image(1, 90, 31)]
    theirs = own_inputs(kind, AutoProcessor.from_pretrained(folder), images, TEXTS)
    pixels = theirs["pixel_values"]
    theirs = {name: value for name, value in theirs.items() if kind == "chinese_clip" or name != "token_type_ids"}
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**theirs).logits_per_image
        for model, processor in (load_model(folder), load_model(tmp_path / "out")):
            inputs = processor(images=images, text=TEXTS, return_tensors="pt")
            assert torch.equal(inputs["pixel_values"], pixels)
            torch.testing.assert_close(model(**inputs).logits_per_image, expected, rtol=1e-6, atol=1e-5)
    pairs = [{"image": image, "text": text, "image_id": text} for image, text in zip(images, TEXTS, strict=True)]
    samples = PretrainingDataset(pairs, processor)
    batch = R2D2PretrainingCollator(processor)([samples[number] for number in range(2)])
    torch.testing.assert_close(batch["pixel_values"], pixels, rtol=0, atol=1e-6)
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
