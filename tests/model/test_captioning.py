"""Captioning: weights from pre-training, generation with and without cache, batches, beams, losses, pipeline."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, pipeline

from modeling_r2d2 import R2D2ForConditionalGeneration, R2D2ForPreTraining
from modeling_r2d2.model.captioning_r2d2 import R2D2CaptionDecoder
from modeling_r2d2.model.modeling_r2d2 import R2D2CrossEncoder
from tests.helpers import tiny_image, tiny_processor
from tests.test_remote_code import fresh_process
from tests.tiny import TEXT, tiny_batch, tiny_config

TOWERS = ["clip", "resnet"]


def captioner(tower: str = "clip", attention: str = "sdpa", **config) -> R2D2ForConditionalGeneration:
    """Weights spread out, so that random captions differ from picture to picture."""
    torch.manual_seed(0)
    model = R2D2ForConditionalGeneration._from_config(
        tiny_config(tower, max_text_length=16, **config), attn_implementation=attention
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    model.set_special_tokens(tiny_processor().tokenizer)
    return model


def pixels(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=TOWERS)
def model(request):
    return captioner(request.param)


def test_a_pre_training_checkpoint_is_loaded_whole(tmp_path):
    pretrained = R2D2ForPreTraining(tiny_config())
    pretrained.save_pretrained(tmp_path)
    model, info = R2D2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs = pretrained.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert model.mlm_head.decoder.weight is model.text_model.embeddings.word_embeddings.weight


def test_the_decoder_without_a_causal_mask_is_the_cross_encoder():
    """The same weights by the same names: with one token, where nothing lies ahead, both give the same states."""
    config = tiny_config().cross_encoder_config
    encoder = R2D2CrossEncoder._from_config(config, context_size=24).eval()
    decoder = R2D2CaptionDecoder._from_config(config, context_size=24).eval()
    decoder.load_state_dict(encoder.state_dict())
    states, context = torch.randn(3, 1, 32), torch.randn(3, 5, 24)
    with torch.no_grad():
        torch.testing.assert_close(decoder(states, context).last_hidden_state, encoder(states, context)[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_token_sees_what_follows(attention):
    model = captioner(attention=attention)
    ids = torch.randint(5, 60, (2, 8))
    other = ids.clone()
    other[:, 5:] = torch.randint(5, 60, (2, 3))
    with torch.no_grad():
        one, two = (model(x, pixels(2), torch.ones_like(x)).logits for x in (ids, other))
    torch.testing.assert_close(one[:, :5], two[:, :5], atol=1e-5, rtol=0)
    assert (one[:, 5:] - two[:, 5:]).abs().max() > 0.1


def test_loss_is_the_cross_entropy_of_the_next_token(model):
    """Against numpy, on the logits that the same inputs give."""
    batch = tiny_batch(3, length=7, masked=False)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        logits = model(**inputs).logits.double().numpy()
        output = model(**inputs, labels=labels)
    total, count = 0.0, 0
    for row in range(3):
        for place in range(6):
            target = int(labels[row, place + 1])
            if target != -100:
                scores = logits[row, place]
                total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target]
                count += 1
    assert count < 18  # something was padding
    assert output.logits is None
    assert output.loss.item() == pytest.approx(total / count, rel=1e-5)


def test_padding_on_either_side_changes_nothing(model):
    ids = torch.randint(5, 60, (1, 5))
    with torch.no_grad():
        alone = model(ids, pixels(1)).logits
        for left, right in ((3, 0), (0, 2)):
            padded = torch.nn.functional.pad(ids, (left, right))
            mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
            logits = model(padded, pixels(1), mask).logits[:, left : left + 5]
            torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_with_cache_equals_without(attention, options):
    model = captioner(attention=attention)
    options |= {"max_new_tokens": 10, "return_dict_in_generate": True, "output_scores": True}
    fast, slow = (model.generate(pixel_values=pixels(), use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(fast.sequences, slow.sequences)
    for one, two in zip(fast.scores, slow.scores, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert len({tuple(row) for row in fast.sequences.tolist()}) > 1  # pictures matter


def test_sampling_with_cache_equals_without(model):
    sampled = []
    for cache in (True, False):
        torch.manual_seed(3)
        sampled.append(model.generate(pixel_values=pixels(2), do_sample=True, use_cache=cache, num_return_sequences=2))
    assert sampled[0].shape[0] == 4
    assert torch.equal(*sampled)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_equals_one_by_one(model, beams):
    texts = ["一只猫", "", "两条红黄的鱼", "一"]
    tokenizer = tiny_processor().tokenizer
    together = model.generate(
        **tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=pixels(), num_beams=beams
    )
    for row, text in enumerate(texts):
        alone = model.generate(
            **tokenizer([text], return_tensors="pt"), pixel_values=pixels()[row : row + 1], num_beams=beams
        )
        kept = [token for token in together[row].tolist() if token]
        # the batch goes on until its longest is done; what follows is padding
        longest = max(len(kept), alone.shape[1])
        assert (kept + [0] * longest)[: alone.shape[1]] == alone[0].tolist()
        assert tokenizer.decode(alone[0], skip_special_tokens=True).replace(" ", "").startswith(text)


def test_every_image_is_encoded_once(model, monkeypatch):
    seen = []
    encode = model.get_image_states
    monkeypatch.setattr(model, "get_image_states", lambda x: seen.append(len(x)) or encode(x))
    projected = []
    first = model.text_image_encoder.layers[0].cross_attn.k_proj
    hook = first.register_forward_hook(lambda module, arguments, output: projected.append(len(output)))
    model.generate(pixel_values=pixels(), num_beams=3, max_new_tokens=6)
    hook.remove()
    assert seen == [4]
    assert projected == [4]


def test_captions_end_where_the_positions_do(model):
    positions = TEXT["max_position_embeddings"]
    tokens = model.generate(pixel_values=pixels(1), max_new_tokens=10_000, suppress_tokens=[3])
    assert tokens.shape[1] == positions
    with pytest.raises(ValueError, match=f"exceeds the {positions} positions"):
        model(tokens.repeat(1, 2), pixels(1))
    with pytest.raises(ValueError, match="no position"):
        model.generate(tokens, pixels(1))


def test_default_length_is_the_processors(model):
    tokens = model.generate(pixel_values=pixels(1), suppress_tokens=[3])
    assert tokens.shape[1] == model.config.max_text_length


def test_errors_name_the_remedy():
    model = captioner()
    with pytest.raises(ValueError, match="needs pixel_values"):
        model.generate()
    with pytest.raises(ValueError, match="2 images, 1 beginnings"):
        model.generate(torch.tensor([[2, 3]]), pixels(2))
    with pytest.raises(ValueError, match="2 images, 3 captions"):
        model(torch.ones(3, 4, dtype=torch.long), pixels(2))
    with pytest.raises(ValueError, match="give the pictures"):
        model(torch.ones(3, 4, dtype=torch.long))
    model.generation_config = GenerationConfig()
    with pytest.raises(ValueError, match="set_special_tokens"):
        model.generate(pixel_values=pixels(1))
    with pytest.raises(ValueError, match="writing captions needs a ranker"):
        R2D2ForConditionalGeneration(tiny_config(ranker=False))


def test_gradients_reach_every_parameter_and_checkpointing_changes_none():
    batch = tiny_batch(3, masked=False)
    gradients = []
    for checkpointing in (False, True):
        model = captioner().train()
        if checkpointing:
            model.gradient_checkpointing_enable()  # the name in all supported versions
        ids, mask = batch["input_ids"], batch["attention_mask"]
        model(ids, batch["pixel_values"], mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert [name for name, gradient in gradients[0].items() if gradient is None] == []
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_attentions_and_states(model):
    ids = torch.randint(5, 60, (2, 6))
    eager = captioner(attention="eager")
    output = eager(ids, pixels(2), output_attentions=True, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert output.attentions[0].shape == (2, 4, 6, 6)
    assert output.attentions[0].triu(1).abs().max() == 0
    assert output.cross_attentions[0].shape == (2, 4, 6, 5)


def test_saved_and_loaded_with_its_special_tokens(tmp_path):
    model = captioner()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is R2D2ForConditionalGeneration
    assert torch.equal(again.generate(pixel_values=pixels()), model.generate(pixel_values=pixels()))
    auto_map = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert auto_map["AutoModelForImageTextToText"] == "captioning_r2d2.R2D2ForConditionalGeneration"
    assert "AutoModel" not in auto_map


def test_stock_pipeline(tmp_path):
    model, processor = captioner(), tiny_processor()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    caption = pipeline("image-text-to-text", model=str(tmp_path))
    image = tiny_image()
    inputs = processor(images=[image], text=["一只"], return_tensors="pt")
    (result,) = caption(images=image, text="一只", generate_kwargs={"num_beams": 2})
    expected = processor.tokenizer.decode(model.generate(**inputs, num_beams=2)[0], skip_special_tokens=True)
    # the pipeline decodes as a BERT tokenizer does, with a space between characters
    assert result["generated_text"].replace(" ", "") == expected.replace(" ", "")
    assert result["generated_text"].startswith("一只")
    assert caption(images=image, text="")[0]["generated_text"]


@pytest.mark.slow
def test_without_the_package(tmp_path):
    folder = tmp_path / "captioner"
    model = captioner()
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    tiny_image().save(folder / "picture.png")
    result = fresh_process(
        folder,
        """
        from transformers import AutoModelForImageTextToText
        model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
        processor = AutoProcessor.from_pretrained(folder, **trust)
        pixel_values = processor(images=[picture], return_tensors="pt")["pixel_values"]
        result = {"tokens": model.generate(pixel_values=pixel_values, num_beams=2).tolist()}
        """,
        tmp_path,
    )
    image = tiny_processor()(images=[tiny_image()], return_tensors="pt")["pixel_values"]
    assert result["tokens"] == model.generate(pixel_values=image, num_beams=2).tolist()


def test_decoding_joins_chinese_characters_and_keeps_latin_words():
    processor = tiny_processor()
    ids = processor(text=["一只abc xyz猫", "12 3船"], return_tensors="pt")["input_ids"]
    assert processor.post_process_image_text_to_text(ids) == ["一只abc xyz猫", "12 3船"]
