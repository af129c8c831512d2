"""Wukong: configuration, towers, both similarities, locked-image tuning, zero-shot classification, processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    CLIPTextModel,
    pipeline,
)

from modeling_r2d2 import WukongConfig, WukongModel, WukongProcessor
from modeling_r2d2.model.modeling_wukong import WukongTokenReduction
from modeling_r2d2.model.presets_r2d2 import WUKONG_PRESETS
from modeling_r2d2.model.prompts_r2d2 import class_prompts
from tests.helpers import tiny_image
from tests.wukong import reference
from tests.wukong.tiny import KINDS, tiny_wukong, tiny_wukong_batch, tiny_wukong_processor

TOWERS = ["clip", "vit", "dinov2", "siglip", "swin", "resnet", "convnext"]


def reference_similarities(model: WukongModel, output, zero_padded=None) -> tuple[np.ndarray, np.ndarray]:
    """From the model's embeddings, by the reference."""
    images, texts = output.image_embeds.double().numpy(), output.text_embeds.double().numpy()
    if model.is_token_wise:
        return reference.similarity(images, texts, output.text_mask.numpy(), zero_padded)
    return images @ texts.T, texts @ images.T


class TestConfig:
    def test_twelve_presets(self):
        assert len(WUKONG_PRESETS) == 12
        for name in WUKONG_PRESETS:
            config = WukongConfig.from_preset(name)
            assert config.text_config.max_position_embeddings == 32
            assert config.text_config.vocab_size == 21128
            assert (config.similarity == "global") == name.endswith("clip")
            assert (config.token_reduction is None) == (not name.endswith("-wukong"))
            again = WukongConfig.from_dict(config.to_dict())
            assert again.to_dict() == config.to_dict()
        assert WukongConfig.from_preset("wukong-swin-l-clip").vision_hidden_size == 1536
        with pytest.raises(ValueError, match="unknown preset"):
            WukongConfig.from_preset("wukong-vit-h")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"similarity": "cosine"}, "similarity must be one of"),
            ({"text_padding": "ones"}, "text_padding must be one of"),
            ({"token_reduction": 4}, "needs similarity='token-wise'"),
            ({"similarity": "token-wise", "token_reduction": 0}, "at least 1"),
            ({"similarity": "token-wise", "token_reduction": 4, "projection_dim": 12}, "not a multiple"),
            ({"similarity_chunk_size": 0}, "similarity_chunk_size"),
            ({"temperature_init_value": 0.9}, "temperature_init_value"),
            ({"vision_config": {"model_type": "poolformer"}}, "vision_pooling"),
        ],
    )
    def test_refusals(self, settings, message):
        with pytest.raises(Exception, match=message):
            WukongConfig(**settings)


class TestModel:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("tower", TOWERS)
    def test_every_tower_with_every_similarity(self, tower, kind):
        model, batch = tiny_wukong(kind, tower), tiny_wukong_batch()
        with torch.no_grad():
            output = model(**batch)
        expected = reference_similarities(model, output)
        tau = model.temperature.item()
        np.testing.assert_allclose(output.logits_per_image * tau, expected[0], atol=1e-6)
        np.testing.assert_allclose(output.logits_per_text * tau, expected[1], atol=1e-6)
        if model.is_token_wise:
            patches = {"clip": 4, "vit": 4, "dinov2": 4, "siglip": 4, "swin": 16}.get(tower)
            tokens = output.image_embeds.shape[1]
            assert tokens == 3 if kind == "wukong" else tokens == patches or patches is None
            assert not torch.allclose(output.logits_per_image, output.logits_per_text.t())
            assert not output.text_embeds[~output.text_mask].any()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("ids", [None, [3, 3, 7, 1, 7, 0]])
    def test_loss_and_gradients(self, kind, ids):
        model, batch = tiny_wukong(kind, spread=1.0), tiny_wukong_batch()
        output = model(**batch, return_loss=True, image_ids=None if ids is None else torch.tensor(ids))
        output.loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        with torch.no_grad():
            logits = model(**batch)
        torch.testing.assert_close(output.logits_per_image, logits.logits_per_image)
        torch.testing.assert_close(output.logits_per_text, logits.logits_per_text)
        similarities = reference_similarities(model, logits)
        expected = reference.contrastive_loss(*similarities, model.temperature.item(), ids or list(range(6)))
        assert output.loss.item() == pytest.approx(expected, rel=1e-5)

    def test_chunks_change_nothing(self):
        batch, results = tiny_wukong_batch(), []
        for chunk in (2, 64):
            torch.manual_seed(0)
            model = tiny_wukong("filip", spread=1.0, similarity_chunk_size=chunk)
            output = model(**batch, return_loss=True)
            output.loss.backward()
            results.append((output.loss.detach(), [p.grad for p in model.parameters()]))
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_padding_changes_nothing(self, kind):
        """Neither its amount nor what stands under it: the causal tower and the similarity never see it."""
        model, batch = tiny_wukong(kind), tiny_wukong_batch()
        with torch.no_grad():
            expected = model(**batch).logits_per_image
            wider = {k: torch.nn.functional.pad(v, (0, 5)) if v.dim() == 2 else v for k, v in batch.items()}
            wider["input_ids"] += 7 * (1 - wider["attention_mask"])
            torch.testing.assert_close(model(**wider).logits_per_image, expected, rtol=1e-4, atol=1e-4)
            without = {k: v for k, v in batch.items() if k != "attention_mask"}
            torch.testing.assert_close(model(**without).logits_per_image, expected)
            one = model(batch["input_ids"][2:3], batch["pixel_values"][1:2], batch["attention_mask"][2:3])
            torch.testing.assert_close(one.logits_per_image[0, 0], expected[1, 2], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("trim", [True, False])
    def test_padding_as_the_authors_compare_it(self, trim):
        """However far a batch is padded, texts shorter than the context have a zero among their candidates."""
        model, batch = tiny_wukong("filip", text_padding="zero"), tiny_wukong_batch(length=16, pairs=16)
        width = 16 if not trim else 9
        keep = batch["attention_mask"].sum(dim=1) <= width
        ids, mask = batch["input_ids"][keep, :width], batch["attention_mask"][keep, :width]
        with torch.no_grad():
            output = model(ids, batch["pixel_values"], mask)
        shorter = (mask.sum(dim=1) < 16).numpy()
        assert shorter.all() == trim
        expected = reference_similarities(model, output, shorter)[0]
        np.testing.assert_allclose(output.logits_per_image * model.temperature.item(), expected, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_odd_batches(self, kind):
        """One pair; a text of one token; a text of padding alone: defined, finite, and trainable."""
        model = tiny_wukong(kind, spread=1.0)
        pixels = torch.randn(1, 3, 32, 32)
        one = model(torch.tensor([[7]]), pixels, return_loss=True)
        assert one.loss.item() == 0.0  # nothing to confuse it with
        empty = model(torch.tensor([[7, 8], [0, 0]]), pixels.repeat(2, 1, 1, 1), torch.tensor([[1, 1], [0, 0]]), True)
        assert not empty.logits_per_image[:, 1].any()
        assert not empty.logits_per_text[1].any()
        empty.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    def test_text_features_at_the_last_real_token(self):
        model, batch = tiny_wukong("clip"), tiny_wukong_batch()
        with torch.no_grad():
            features = model.get_text_features(batch["input_ids"], batch["attention_mask"])
            for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
                alone = model.text_model(batch["input_ids"][row : row + 1, :length]).last_hidden_state[0, -1]
                expected = model.text_projection(alone)
                torch.testing.assert_close(features.pooler_output[row], expected, rtol=1e-4, atol=1e-4)

    def test_token_reduction_against_loops(self):
        torch.manual_seed(0)
        layer = WukongTokenReduction(16, 3, 8)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        states = torch.randn(2, 5, 16)
        weights = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
        expected = reference.token_reduction(states.numpy(), weights, groups=8)
        with torch.no_grad():
            np.testing.assert_allclose(layer(states), expected, rtol=1e-4, atol=1e-5)

    def test_errors(self):
        model, batch = tiny_wukong("clip"), tiny_wukong_batch()
        with pytest.raises(ValueError, match="6 images and 5 texts"):
            model(batch["input_ids"][:5], batch["pixel_values"], return_loss=True)
        with pytest.raises(ValueError, match="pad on the right"):
            model.get_text_features(batch["input_ids"], batch["attention_mask"].flip(1))
        with pytest.raises(ValueError, match="17 tokens exceeds the 16 positions"):
            model.get_text_features(torch.ones(1, 17, dtype=torch.long))
        with pytest.raises(ValueError, match="outside the vocabulary"):
            model.get_text_features(torch.tensor([[99]]))
        with pytest.raises(ValueError, match="pixel_values is an empty batch"):
            model.get_image_features(batch["pixel_values"][:0])

    @pytest.mark.parametrize("kind", KINDS)
    def test_half_precision(self, kind):
        model, batch = tiny_wukong(kind, spread=1.0), tiny_wukong_batch()
        with torch.no_grad():
            expected = model(**batch, return_loss=True)
            output = model.to(torch.bfloat16)(**batch, return_loss=True)
        assert output.loss.dtype is torch.float32
        assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)

    @pytest.mark.parametrize("kind", KINDS)
    def test_eager_equals_sdpa_and_checkpointing(self, kind):
        model, batch = tiny_wukong(kind, spread=1.0).train(), tiny_wukong_batch()
        losses = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            losses.append(model(**batch, return_loss=True).loss)
        model.gradient_checkpointing_enable()
        losses.append(model(**batch, return_loss=True).loss)
        for loss in losses[1:]:
            torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-6)
        losses[2].backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_compiled_and_exported(self):
        """The blocks of the similarity do not depend on data there, and nothing else changes."""
        model, batch = tiny_wukong("filip"), tiny_wukong_batch()
        arguments = batch["input_ids"], batch["pixel_values"], batch["attention_mask"]
        with torch.no_grad():
            expected = model(*arguments).logits_per_image
            program = torch.export.export(model, arguments).module()
            torch.testing.assert_close(program(*arguments)["logits_per_image"], expected)
        loss = model(**batch, return_loss=True).loss
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad()
        compiled = torch.compile(model, backend="eager")(**batch, return_loss=True).loss
        compiled.backward()
        torch.testing.assert_close(compiled, loss)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


class TestLockedImageTuning:
    @pytest.mark.parametrize("kind", KINDS)
    def test_only_the_rest_trains(self, kind, tmp_path):
        model, batch = tiny_wukong(kind, "swin", spread=1.0), tiny_wukong_batch()
        model.config.vision_config.hidden_dropout_prob = 0.5
        model.lock_image_tower().train()
        assert not model.vision_model.training
        assert model.text_model.training
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model(**batch, return_loss=True).loss.backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            locked = name.startswith(("vision_model.", "vision_layernorm."))
            assert (parameter.grad is None) == locked, name
            assert torch.equal(parameter, before[name]) == locked or name == "temperature", name
        model.save_pretrained(tmp_path)
        again = WukongModel.from_pretrained(tmp_path).train()
        assert again.config.lock_image_tower
        assert not any(p.requires_grad for p in again.vision_model.parameters())
        assert all(p.requires_grad for p in again.text_model.parameters())
        assert not again.vision_model.training
        again.lock_image_tower(False)
        assert again.vision_model.training
        assert all(p.requires_grad for p in again.parameters())


class TestClassification:
    LABELS, TEMPLATES = ["猫", "狗", "小船"], ["一张{}的图片", "一只{}", "{}"]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("tau", [None, 1.0])
    def test_against_the_formula(self, kind, tau):
        model, processor = tiny_wukong(kind), tiny_wukong_processor()
        texts = class_prompts(self.LABELS, self.TEMPLATES)
        assert texts[:4] == ["一张猫的图片", "一只猫", "猫", "一张狗的图片"]
        inputs = processor(images=[tiny_image(s) for s in range(4)], text=texts, return_tensors="pt")
        with torch.no_grad():
            classes = model.encode_classes(inputs["input_ids"], inputs["attention_mask"], prompts=3)
            actual = model.class_probabilities(inputs["pixel_values"], classes, temperature=tau)
            output = model(**inputs)
        tau = model.temperature.item() if tau is None else tau
        similarity = reference_similarities(model, output)[0].reshape(4, 3, 3)  # image, label, template
        if kind == "clip":
            means = output.text_embeds.double().numpy().reshape(3, 3, -1).mean(axis=1)
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            similarity = (output.image_embeds.double().numpy() @ means.T)[:, :, None]
        exponents = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / tau)
        expected = (exponents / exponents.sum(axis=1, keepdims=True)).mean(axis=2)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        np.testing.assert_allclose(actual.sum(dim=1), 1, atol=1e-6)

    def test_errors(self):
        with pytest.raises(ValueError, match="must contain"):
            class_prompts(["猫"], ["一只猫"])
        with pytest.raises(ValueError, match="at least one entry"):
            class_prompts([])
        with pytest.raises(ValueError, match="are not 2 prompts"):
            tiny_wukong("clip").encode_classes(torch.ones(3, 4, dtype=torch.long), prompts=2)
        classes = tiny_wukong("clip").encode_classes(torch.ones(3, 4, dtype=torch.long))
        with pytest.raises(ValueError, match="encoded by a model of global similarity"):
            tiny_wukong("filip").class_probabilities(torch.zeros(1, 3, 32, 32), classes)

    def test_without_a_pad_token_a_mask_is_needed(self):
        model = tiny_wukong("filip")
        model.config.text_config.pad_token_id = None
        with pytest.raises(ValueError, match="pad_token_id is None"):
            model(input_ids=torch.ones(3, 4, dtype=torch.long))


class TestHub:
    @pytest.fixture
    def folder(self, tmp_path):
        tiny_wukong("wukong").save_pretrained(tmp_path)
        tiny_wukong_processor().save_pretrained(tmp_path)
        return tmp_path

    def test_auto_classes_and_pipeline(self, folder):
        assert type(AutoConfig.from_pretrained(folder)) is WukongConfig
        model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert type(model) is WukongModel
        assert not any(info.values())
        assert type(AutoModelForZeroShotImageClassification.from_pretrained(folder)) is WukongModel
        processor = AutoProcessor.from_pretrained(folder)
        assert type(processor) is WukongProcessor
        classify = pipeline("zero-shot-image-classification", model=str(folder))
        scores = classify(tiny_image(), candidate_labels=["猫", "小船"], hypothesis_template="一张{}的图片")
        inputs = processor(images=tiny_image(), text=["一张猫的图片", "一张小船的图片"], return_tensors="pt")
        with torch.no_grad():
            expected = model.eval()(**inputs).logits_per_image.softmax(dim=1)[0].tolist()
        got = {score["label"]: score["score"] for score in scores}
        assert [got["猫"], got["小船"]] == pytest.approx(expected, abs=1e-6)

    def test_missing_weights_are_initialized(self, folder):
        """What a checkpoint lacks starts as in a new model, the temperature too."""
        model = AutoModel.from_pretrained(folder)
        kept = {k: v for k, v in model.state_dict().items() if "projection" not in k and "reduction" not in k}
        del kept["temperature"]
        fresh = WukongModel.from_pretrained(None, config=model.config, state_dict=kept)
        assert fresh.temperature.item() == pytest.approx(0.07)
        assert fresh.text_projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.2)
        for convolution in (*fresh.token_reduction.attention_maps, fresh.token_reduction.feat_conv):
            assert torch.isfinite(convolution.weight).all()
            assert convolution.weight.any()
        torch.testing.assert_close(fresh.text_model.state_dict(), model.text_model.state_dict())

    def test_text_tower_is_a_plain_clip_text_model(self, tmp_path):
        model = tiny_wukong("clip")
        model.text_model.save_pretrained(tmp_path)
        tower, info = CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            torch.testing.assert_close(tower(ids).last_hidden_state, model.text_model(ids).last_hidden_state)


class TestProcessor:
    def test_resizes_the_shorter_side_and_crops_the_center(self):
        processor = tiny_wukong_processor()
        pixels = np.zeros((64, 160, 3), dtype=np.uint8)
        pixels[:, 48:112] = 255  # the centre square is white
        actual = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        assert actual.shape == (1, 3, 32, 32)
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        white = ((1 - mean) / std).expand(3, 32, 24)
        torch.testing.assert_close(actual[0, :, :, 4:28], white, rtol=0, atol=1e-5)

    def test_cuts_texts_and_keeps_the_last_token(self):
        inputs = tiny_wukong_processor()(text=["猫" * 40, "猫"], return_tensors="pt")
        assert inputs["input_ids"].shape == (2, 16)
        assert inputs["input_ids"][0, -1] == 3  # [SEP]
        assert inputs["attention_mask"].sum(dim=1).tolist() == [16, 3]

    def test_round_trip(self, tmp_path):
        processor = tiny_wukong_processor()
        processor.tokenizer.padding_side = "right"
        processor.save_pretrained(tmp_path)
        again = WukongProcessor.from_pretrained(tmp_path)
        inputs = {"images": tiny_image(), "text": ["一只猫"], "return_tensors": "pt"}
        for name, tensor in processor(**inputs).items():
            assert torch.equal(again(**inputs)[name], tensor), name


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
