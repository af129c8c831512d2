"""Configuration and model: towers, switches, round trips, precision, export, and what they refuse."""

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForZeroShotImageClassification, BertModel

from modeling_r2d2 import (
    R2D2Config,
    R2D2ForImageTextMatching,
    R2D2ForPreTraining,
    R2D2Model,
    R2D2TextModel,
    R2D2VisionConfig,
)
from tests.tiny import TEXT, TOWERS, tiny_batch, tiny_config

INPUTS = ("input_ids", "pixel_values", "attention_mask")


def inputs(**kwargs) -> dict:
    batch = tiny_batch(**kwargs)
    return {name: batch[name] for name in INPUTS}


def model(tower: str = "clip", cls=R2D2Model, attn: str = "sdpa", **kwargs):
    torch.manual_seed(0)
    return cls._from_config(tiny_config(tower, **kwargs), attn_implementation=attn).eval()


# configuration


def test_presets_have_the_official_sizes():
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in R2D2Model(R2D2Config.from_preset(name)).parameters())
            for name in ("r2d2-vit-b-16", "r2d2-vit-l-14", "prd2-vit-l-14")
        }
    # The parameters stored in the official files, less what nothing reads.
    pooler, dead_embeddings = 768 * 769, 2 * (21128 + 512 + 2) * 768
    assert sizes == {
        "r2d2-vit-b-16": 336_505_349 - dead_embeddings - pooler - 2 * 768,
        "r2d2-vit-l-14": 556_638_213 - dead_embeddings - pooler - 2 * 1024,
        "prd2-vit-l-14": 406_825_217 - pooler - 2 * 1024,
    }


def test_config_round_trip_keeps_an_explicit_none(tmp_path):
    for ranker in (True, False):
        config = tiny_config("resnet", ranker=ranker)
        config.save_pretrained(tmp_path)
        loaded = R2D2Config.from_pretrained(tmp_path)
        assert loaded.to_dict() == config.to_dict()
        assert (loaded.cross_encoder_config is None) is not ranker
    assert R2D2Config().cross_encoder_config is not None
    assert isinstance(R2D2Config().vision_config, R2D2VisionConfig)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"vision_pooling": "max"}, "vision_pooling"),
        ({"temperature_init_value": 0.9}, "temperature"),
        ({"cross_encoder_config": {"hidden_size": 72}}, "must equal text_config.hidden_size"),
        ({"cross_encoder_config": {"num_attention_heads": 5}}, "multiple"),
        ({"vision_config": {"model_type": "poolformer"}}, "does not imply one"),
    ],
)
def test_config_refuses_what_cannot_work(kwargs, message):
    with pytest.raises(Exception, match=message):
        R2D2Config(**kwargs)


def test_unknown_preset():
    with pytest.raises(ValueError, match="r2d2-vit-b-16"):
        R2D2Config.from_preset("r2d2-vit-h")


# towers and switches


@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_keeps_the_contract(tower, tmp_path):
    first = model(tower)
    output = first(**inputs(pairs=4))
    states = output.vision_model_output.last_hidden_state
    assert states.dim() == 3
    assert states.shape[0] == 4
    assert states.shape[2] == first.config.vision_hidden_size
    assert output.logits_per_image.shape == (4, 4)
    first.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**inputs(pairs=4)).logits_per_image, output.logits_per_image, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        again.match(**inputs(pairs=4)).match_probability, first.match(**inputs(pairs=4)).match_probability
    )


@pytest.mark.parametrize("tower", TOWERS)
def test_sdpa_equals_eager_and_the_switch_reaches_every_part(tower):
    sdpa, eager = model(tower), model(tower, attn="eager")
    eager.load_state_dict(sdpa.state_dict())
    expected = sdpa.match(**inputs())
    for other in (eager, sdpa):
        other.set_attn_implementation("eager")
        assert other.config.cross_encoder_config._attn_implementation == "eager"
        assert other.config.text_config._attn_implementation == "eager"
        output = other.match(**inputs())
        torch.testing.assert_close(output.match_probability, expected.match_probability, rtol=0, atol=1e-6)
    sdpa.set_attn_implementation("sdpa")
    assert sdpa.config.text_config._attn_implementation == "sdpa"


def test_a_tower_without_attention_ignores_the_switch(tmp_path):
    model("resnet").save_pretrained(tmp_path)
    for attn in ("sdpa", "eager"):
        loaded = R2D2Model.from_pretrained(tmp_path, attn_implementation=attn)
        assert loaded.config.text_config._attn_implementation == attn
    loaded.set_attn_implementation("sdpa")
    assert loaded.config.cross_encoder_config._attn_implementation == "sdpa"


def test_post_layernorm_is_left_out_and_features_come_before_it():
    assert not any("post_layernorm" in name for name in model().state_dict())


def test_position_embeddings_interpolate():
    clip = model()
    small, large = inputs(image_size=32), inputs(image_size=64)
    states = clip.get_image_features(large["pixel_values"]).last_hidden_state
    assert states.shape[1] == 1 + 16
    assert clip.get_image_features(small["pixel_values"]).last_hidden_state.shape[1] == 1 + 4
    wide = clip.get_image_features(torch.randn(2, 3, 32, 64)).last_hidden_state
    assert wide.shape[1] == 1 + 8


# ranking


def test_rank_by_index_equals_ranking_copied_states():
    full = model()
    texts = full.get_text_features(*[inputs()[n] for n in ("input_ids", "attention_mask")]).last_hidden_state
    images = full.get_image_features(inputs()["pixel_values"]).last_hidden_state
    mask = inputs()["attention_mask"]
    text_index, image_index = torch.tensor([3, 1, 1, 0, 5, 2, 4]), torch.tensor([0, 1, 5, 0, 2, 2, 4])
    by_index = full.rank(texts, images, mask, text_index, image_index)
    copied = full.rank(texts[text_index], images[image_index], mask[text_index])
    cls_only = full.rank(texts, images, mask, text_index, image_index, cls_only=True)
    for other in (copied, cls_only):
        torch.testing.assert_close(by_index.text_match_logits, other.text_match_logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(by_index.image_match_logits, other.image_match_logits, rtol=0, atol=1e-6)
    assert by_index.text_cross_output.last_hidden_state.shape == (7, 9, 32)
    assert cls_only.text_cross_output.last_hidden_state.shape == (7, 1, 32)


def test_padding_changes_nothing():
    full = model()
    batch = inputs()
    trimmed = {**batch, "input_ids": batch["input_ids"][1:2, :6], "attention_mask": batch["attention_mask"][1:2, :6]}
    trimmed["pixel_values"] = batch["pixel_values"][1:2]
    alone = full.match(**trimmed).match_probability
    torch.testing.assert_close(full.match(**batch).match_probability[1:2], alone, rtol=0, atol=1e-6)


def test_cross_encoder_records_its_attentions():
    eager = model(attn="eager")
    output = eager.match(**inputs(), output_attentions=True, output_hidden_states=True)
    cross = output.text_cross_output
    assert len(cross.hidden_states) == 3
    assert [a.shape for a in cross.attentions] == [(6, 4, 9, 9)] * 2
    assert [a.shape for a in cross.cross_attentions] == [(6, 4, 9, 5)] * 2
    torch.testing.assert_close(cross.cross_attentions[0].sum(-1), torch.ones(6, 4, 9))


def test_a_model_without_ranker_says_so():
    prd2 = model(ranker=False)
    assert not hasattr(prd2, "text_image_encoder")
    assert prd2(**inputs()).logits_per_image.shape == (6, 6)
    with pytest.raises(ValueError, match="pre-ranking only"):
        prd2.match(**inputs())
    with pytest.raises(ValueError, match="pre-ranking only"):
        prd2.rank(torch.zeros(1, 2, 32), torch.zeros(1, 2, 24))


def test_matching_loss_is_the_mean_of_both_encoders():
    matching = model(cls=R2D2ForImageTextMatching)
    labels = torch.tensor([1, 0, 1, 0, 0, 1])
    output = matching(**inputs(), labels=labels)
    expected = [
        torch.nn.functional.cross_entropy(x, labels) for x in (output.text_match_logits, output.image_match_logits)
    ]
    torch.testing.assert_close(output.loss, sum(expected) / 2)


# saving and loading


def test_round_trips_through_every_class(tmp_path):
    pretraining = model(cls=R2D2ForPreTraining)
    pretraining.save_pretrained(tmp_path)
    expected = pretraining.match(**inputs()).match_probability
    for cls in (R2D2Model, R2D2ForImageTextMatching, AutoModel, AutoModelForZeroShotImageClassification):
        loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        torch.testing.assert_close(loaded.eval().match(**inputs()).match_probability, expected, rtol=0, atol=1e-6)
    head = R2D2ForPreTraining.from_pretrained(tmp_path)
    assert head.mlm_head.decoder.weight is head.get_input_embeddings().weight
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForZeroShotImageClassification"] == "modeling_r2d2.R2D2Model"
    assert (tmp_path / "losses_r2d2.py").exists()


def test_text_tower_is_a_plain_bert(tmp_path):
    full = model()
    full.save_pretrained(tmp_path / "full")
    full.text_model.save_pretrained(tmp_path / "text")
    ids, mask = inputs()["input_ids"], inputs()["attention_mask"]
    expected = full.get_text_features(ids, mask).last_hidden_state
    assert json.loads((tmp_path / "text" / "config.json").read_text())["model_type"] == "bert"
    for text_model in (
        BertModel.from_pretrained(tmp_path / "text", add_pooling_layer=False),
        R2D2TextModel.from_pretrained(tmp_path / "full"),
        R2D2TextModel.from_pretrained(tmp_path / "text"),
    ):
        output = text_model.eval()(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_missing_temperature_is_initialized(tmp_path):
    from safetensors.torch import load_file, save_file

    model(temperature_init_value=0.05).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["temperature"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert R2D2Model.from_pretrained(tmp_path).temperature.item() == pytest.approx(0.05)


def test_resize_token_embeddings():
    pretraining = model(cls=R2D2ForPreTraining)
    pretraining.resize_token_embeddings(120)
    assert pretraining.config.text_config.vocab_size == 120
    assert pretraining.mlm_head.decoder.weight.shape == (120, 32)
    assert pretraining.mlm_head.decoder.bias.shape == (120,)
    batch = tiny_batch()
    batch["input_ids"][0, 1] = 119
    assert torch.isfinite(pretraining(**batch).loss)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision(tmp_path, dtype, tolerance):
    """Stated tolerances of half precision: match probability and cosine within `tolerance` of float32."""
    full = model()
    full.save_pretrained(tmp_path)
    half = R2D2Model.from_pretrained(tmp_path, dtype=dtype).eval()
    assert half.text_projection.weight.dtype is dtype
    assert half.temperature.dtype is torch.float32
    batch = inputs()
    expected, output = full.match(**batch), half.match(**batch)
    assert output.match_probability.dtype is torch.float32
    torch.testing.assert_close(output.match_probability, expected.match_probability, rtol=0, atol=tolerance)
    expected, output = full(**batch), half(**batch)
    assert output.logits_per_image.dtype is torch.float32
    tau = full.temperature.item()
    difference = (output.logits_per_image - expected.logits_per_image).abs().max().item() * tau
    assert difference < tolerance


def test_device_map(tmp_path):
    model().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="cpu")
    assert loaded.device.type == "cpu"
    assert torch.isfinite(loaded(**inputs()).logits_per_image).all()


# compilation and export


def test_torch_compile():
    full = model()
    compiled = torch.compile(full, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(**inputs()).logits_per_image, full(**inputs()).logits_per_image, rtol=0, atol=1e-5
        )


class _Part(torch.nn.Module):
    """One method of the model as a module, since export takes modules."""

    def __init__(self, model, method, field):
        super().__init__()
        self.model, self.method, self.field = model, method, field

    def forward(self, *args):
        return getattr(getattr(self.model, self.method)(*args), self.field)


@pytest.mark.parametrize("part", ["image", "text", "rank"])
def test_export_of_towers_and_ranker(part):
    full = model()
    batch = inputs()
    with torch.no_grad():
        texts = full.get_text_features(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        images = full.get_image_features(batch["pixel_values"]).last_hidden_state
    size, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=40)
    module, arguments, shapes = {
        "image": (_Part(full, "get_image_features", "pooler_output"), (batch["pixel_values"],), ({0: size},)),
        "text": (
            _Part(full, "get_text_features", "pooler_output"),
            (batch["input_ids"], batch["attention_mask"]),
            ({0: size, 1: length}, {0: size, 1: length}),
        ),
        "rank": (
            _Part(full, "rank", "match_probability"),
            (texts, images, batch["attention_mask"]),
            ({0: size, 1: length}, {0: size}, {0: size, 1: length}),
        ),
    }[part]
    exported = torch.export.export(module, arguments, dynamic_shapes=(shapes,) if len(shapes) > 0 else None)
    fewer = tuple(a[:3] for a in arguments)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(*fewer), module(*fewer), rtol=0, atol=1e-5)


# what is refused


def test_return_loss_needs_pairs():
    batch = inputs()
    batch["pixel_values"] = batch["pixel_values"][:4]
    assert model()(**batch).logits_per_image.shape == (4, 6)
    with pytest.raises(ValueError, match="4 images and 6 texts"):
        model()(**batch, return_loss=True)
    with pytest.raises(ValueError, match="4 images, 6 texts"):
        model().match(**batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(0, 3, 32, 32)}, "pixel_values is an empty batch"),
        ({"input_ids": torch.zeros(0, 5, dtype=torch.int64)}, "input_ids is an empty batch"),
        ({"pixel_values": torch.zeros(2, 3, 40, 32)}, "40×32 is not a multiple of the patch size 16×16"),
        ({"input_ids": torch.zeros(2, 41, dtype=torch.int64), "attention_mask": None}, "exceeds the 40 positions"),
        ({"input_ids": torch.full((2, 5), TEXT["vocab_size"]), "attention_mask": None}, "outside the vocabulary"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        model()(**{**inputs(), **change})
