"""Text towers other than BERT, what pre-ranking reads of a tower, projections, logit bias, padding that is read."""

import numpy as np
import pytest
import torch
import transformers

from modeling_r2d2 import R2D2Config, R2D2ForConditionalGeneration, R2D2ForPreTraining, R2D2Model, R2D2Processor
from modeling_r2d2.inference.encoding import encode_texts
from modeling_r2d2.inference.identity import identity_of_weights
from modeling_r2d2.inference.ranker import FastRanker, RankedTexts
from modeling_r2d2.model.configuration_r2d2 import text_positions
from modeling_r2d2.model.modeling_r2d2 import match_log_odds
from modeling_r2d2.model.pipeline_inputs import tokenize
from modeling_r2d2.processing.collation import R2D2PretrainingCollator, SampleEncoder
from tests.helpers import tiny_image, tiny_processor
from tests.tiny import CROSS, TEXT, TOWERS, tiny_batch, tiny_config

#: Text towers, their settings beside `TEXT`, and the class of the library.
TEXTS = {
    "bert": ({}, "BertModel"),
    "chinese_clip_text_model": ({}, "ChineseCLIPTextModel"),
    "xlm-roberta": ({"pad_token_id": 1}, "XLMRobertaModel"),
    "altclip_text_model": ({"pad_token_id": 1, "project_dim": 20}, "AltCLIPTextModel"),
    "clip_text_model": ({"eos_token_id": 98}, "CLIPTextModel"),
    "siglip_text_model": ({"eos_token_id": 98}, "SiglipTextModel"),
}
INPUTS = ("input_ids", "pixel_values", "attention_mask")


def config(text: str, vision: str = "clip", ranker: bool = True, **settings) -> R2D2Config:
    more, _ = TEXTS[text]
    cross = {**CROSS, "hidden_size": more.get("project_dim", TEXT["hidden_size"])}
    return R2D2Config(
        vision_config=dict(TOWERS[vision]),
        text_config={**TEXT, "model_type": text, **more},
        cross_encoder_config=cross if ranker else None,
        **{"projection_dim": 16, **settings},
    )


def batch(text: str, **sizes) -> dict:
    made = tiny_batch(**sizes)
    if "clip_text" in text or "siglip" in text:
        made["input_ids"][:, 6 - 1] = 98  # the end token, before any padding
    pad = TEXTS[text][0].get("pad_token_id", 0)
    for name in ("input_ids", "masked_input_ids"):
        if name in made:
            made[name][made["attention_mask"] == 0] = pad
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_tower_trains_ranks_and_survives_a_round_trip(text, tmp_path):
    torch.manual_seed(0)
    model = R2D2ForPreTraining(config(text, vision_pooling="pooler")).eval()
    inputs = batch(text)
    output = model(**inputs)
    assert all(bool(loss.isfinite()) for loss in (output.loss_gcpr, output.loss_fgr, output.loss_mlm))
    output.loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "pooler" not in n and p.requires_grad)
    model.save_pretrained(tmp_path)
    again, info = R2D2ForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: keys for name, keys in info.items() if keys} == {}
    torch.testing.assert_close(again.eval()(**inputs).loss, output.loss, rtol=0, atol=1e-6)
    tied = again.mlm_head.decoder.weight is again.text_model.get_input_embeddings().weight
    assert tied is (text != "altclip_text_model")  # whose states are narrower than its embeddings


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "last", "pooler"])
def test_what_pre_ranking_reads_of_a_text(text, pooling):
    if (text, pooling) == ("chinese_clip_text_model", "pooler"):
        with pytest.raises(Exception, match="has no pooler"):
            config(text, text_pooling=pooling)
        return
    torch.manual_seed(0)
    model = R2D2Model(config(text, text_pooling=pooling, ranker=False)).eval()
    inputs = batch(text)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    own = getattr(transformers, TEXTS[text][1])(model.config.text_config).eval()
    own.load_state_dict(model.text_model.state_dict(), strict=pooling == "pooler")
    with torch.no_grad():
        theirs = own(ids, attention_mask=mask)
        found = model.get_text_features(ids, mask, token_type_ids=torch.zeros_like(ids))
    torch.testing.assert_close(found.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-6)
    states, real = theirs.last_hidden_state.numpy(), mask.numpy()
    if pooling == "pooler":
        read = theirs.pooler_output.numpy()
    else:
        rows = {
            "cls": lambda row, many: row[0],
            "mean": lambda row, many: row[:many].mean(axis=0),
            "last": lambda row, many: row[many - 1],
        }[pooling]
        read = np.stack([rows(row, int(own.sum())) for row, own in zip(states, real, strict=True)])
    weight, bias = model.text_projection.weight.detach().numpy(), model.text_projection.bias.detach().numpy()
    np.testing.assert_allclose(found.pooler_output.numpy(), read @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("pooling", ["last", "pooler"])
def test_what_pre_ranking_reads_of_an_image(tower, pooling, tmp_path):
    torch.manual_seed(0)
    made = R2D2Config(
        vision_config=dict(TOWERS[tower]), text_config=TEXT, cross_encoder_config=CROSS, vision_pooling=pooling
    )
    model = R2D2Model(made).eval()
    inputs = {name: batch("bert")[name] for name in INPUTS}
    with torch.no_grad():
        outputs = model.vision_model(inputs["pixel_values"])
        found = model.get_image_features(inputs["pixel_values"])
        read = outputs.pooler_output.flatten(1) if pooling == "pooler" else found.last_hidden_state[:, -1]
        torch.testing.assert_close(found.pooler_output, model.vision_projection(read), rtol=0, atol=1e-6)
        ranked = model.match(**inputs)
    tokens = found.last_hidden_state.shape[1]
    class_token = pooling == "pooler" and tower in ("clip", "vit", "dinov2")
    assert ranked.image_cross_output.last_hidden_state.shape[1] == tokens + (not class_token)
    model.save_pretrained(tmp_path)
    again = R2D2Model.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.match(**inputs).match_probability, ranked.match_probability)


@pytest.mark.parametrize(("text", "vision"), [("siglip_text_model", "siglip"), ("clip_text_model", "clip")])
def test_the_fast_ranker_reads_the_same(text, vision):
    torch.manual_seed(0)
    model = R2D2Model(config(text, vision, vision_pooling="pooler")).eval()
    inputs = {name: batch(text)[name] for name in INPUTS}
    with torch.no_grad():
        expected = model.match(**inputs)
        states = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        images = model.get_image_features(inputs["pixel_values"]).last_hidden_state
    ranker = FastRanker(model)
    texts = RankedTexts(states, inputs["attention_mask"].sum(dim=1))
    pairs = torch.arange(len(states))
    found = ranker.logits(texts, ranker.prepare(images), pairs, pairs).match_log_odds
    logits = match_log_odds(expected.text_match_logits, expected.image_match_logits)
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-5)


def test_projections_and_logit_bias():
    torch.manual_seed(0)
    inputs = {name: batch("bert")[name] for name in INPUTS}
    for projection, kind in (("affine", True), ("linear", False)):
        model = R2D2Model(config("bert", projection=projection, logit_bias=-7.5)).eval()
        assert [(each.bias is not None) for each in (model.vision_projection, model.text_projection)] == [kind] * 2
        output = model(**inputs)
        expected = output.image_embeds @ output.text_embeds.t() / model.temperature - 7.5
        torch.testing.assert_close(output.logits_per_image, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.logits_per_text, expected.t(), rtol=0, atol=1e-5)
    same = {**TEXT, "hidden_size": 24}
    model = R2D2Model(
        R2D2Config(
            vision_config=dict(TOWERS["clip"]),
            text_config=same,
            cross_encoder_config=None,
            projection="none",
            projection_dim=24,
        )
    )
    assert not any("projection" in name for name in model.state_dict())
    features = model.get_text_features(inputs["input_ids"])
    assert torch.equal(features.pooler_output, features.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_config": {"model_type": "gpt2"}}, "a text tower is one of bert, "),
        ({"text_pooling": "max"}, "text_pooling must be one of 'cls', 'mean', 'last', 'pooler'"),
        ({"projection": "none", "projection_dim": 16}, "'none': vision_config is 24 wide, and projection_dim is 16"),
        ({"projection": "none", "projection_dim": 24}, "'none': text_config is 32 wide"),
        ({"logit_bias": float("nan")}, "logit_bias is nan"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(Exception, match=message):
        R2D2Config(
            **{
                "vision_config": dict(TOWERS["clip"]),
                "text_config": TEXT,
                "cross_encoder_config": None,
                **settings,
            }
        )


def test_positions_of_texts():
    """RoBERTa's begin behind the position of padding, so that its table holds fewer tokens than it has rows."""
    torch.manual_seed(0)
    model = R2D2Model(config("xlm-roberta", ranker=False)).eval()
    assert text_positions(model.config.text_config) == TEXT["max_position_embeddings"] - 2
    model.get_text_features(torch.full((1, 38), 7))
    with pytest.raises(ValueError, match="a text of 39 tokens exceeds the 38 positions"):
        model.get_text_features(torch.full((1, 39), 7))


def test_captions_need_a_bert():
    with pytest.raises(ValueError, match="this text tower is a 'clip_text_model'"):
        R2D2ForConditionalGeneration(config("clip_text_model"))


def test_the_identity_of_earlier_models_stays():
    """What was added to the configuration does not make another model of one that does not use it."""
    torch.manual_seed(0)
    model = R2D2Model(tiny_config())
    before = identity_of_weights(model)
    as_saved_before = model.config.to_dict
    new = {"text_pooling", "projection", "logit_bias", "attend_padding"}
    model.config.to_dict = lambda: {k: v for k, v in as_saved_before().items() if k not in new}
    assert identity_of_weights(model) == before
    del model.config.to_dict
    model.config.text_pooling = "mean"
    assert identity_of_weights(model) != before


# padding that is read


def padding_processor() -> R2D2Processor:
    plain = tiny_processor()
    return R2D2Processor(plain.image_processor, plain.tokenizer, attend_padding=True)


def test_texts_whose_padding_is_read(tmp_path):
    """Processor, pipelines, collator and encoding give full texts and a mask of ones; the model takes nothing else."""
    torch.manual_seed(0)
    made = config("siglip_text_model", "siglip", ranker=False, attend_padding=True, max_text_length=16)
    model = R2D2Model(made).eval()
    padding_processor().save_pretrained(tmp_path)
    processor = R2D2Processor.from_pretrained(tmp_path)
    texts = ["猫", "两只大白狗"]
    tokens = processor(text=texts, return_tensors="pt")
    assert tokens["input_ids"].shape == (2, 16)
    assert bool((tokens["attention_mask"] == 1).all())
    assert processor(text="猫")["attention_mask"] == [1] * 16
    nested = processor(text=texts, text_kwargs={"padding": True}, return_tensors="np")
    assert nested["attention_mask"].shape == (2, 16)
    piped = tokenize(processor.tokenizer, made, texts)
    encode = SampleEncoder(processor)
    samples = [
        encode({"image": tiny_image(), "text": text, "image_id": n}, np.random.default_rng(0))
        for n, text in enumerate(texts)
    ]
    collated = R2D2PretrainingCollator(processor)(samples)
    for other in (piped, collated):
        assert torch.equal(other["input_ids"], tokens["input_ids"])
        assert torch.equal(other["attention_mask"], tokens["attention_mask"])
    with torch.no_grad():
        expected = model.get_text_features(tokens["input_ids"]).pooler_output
        # whatever a mask says
        half = model.get_text_features(tokens["input_ids"], (tokens["input_ids"] != 0).long()).pooler_output
    torch.testing.assert_close(half, expected)
    encoded = encode_texts(model, processor, texts)
    torch.testing.assert_close(encoded.embeds, torch.nn.functional.normalize(expected), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="texts of 7 tokens: this text tower reads padding too"):
        model.get_text_features(tokens["input_ids"][:, :7])


def test_other_processors_pad_to_the_longest(tmp_path):
    plain = tiny_processor()
    plain.save_pretrained(tmp_path)
    again = R2D2Processor.from_pretrained(tmp_path)
    assert not again.attend_padding
    assert again(text=["猫", "大白狗"])["attention_mask"] == [[1, 1, 1, 0, 0], [1] * 5]
