"""Checkpoints in the authors' layout: every tensor explained, the numbers of a model written from the layout."""

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from modeling_r2d2 import WukongConfig, WukongModel, convert_wukong_checkpoint
from modeling_r2d2.cli import app
from modeling_r2d2.integrations.checkpoints import CheckpointError
from modeling_r2d2.integrations.wukong import convert_wukong_state_dict, infer_wukong_config, is_wukong_state_dict
from modeling_r2d2.integrations.wukong_names import model_names
from tests.helpers import tiny_image
from tests.integrations.conversion.official_files import official_tensors, wide_config
from tests.wukong import reference
from tests.wukong.tiny import tiny_wukong

IDS = torch.tensor([[2, 7, 8, 9, 3, *[0] * 7], [2, 3, *[0] * 10], [2, *range(10, 20), 3]])


@pytest.fixture
def save(tmp_path):
    def write(content, name: str = "wukong.ckpt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize(("embedding", "tokens"), [(512, None), (256, None), (256, 4)])
def test_same_similarities_as_the_layout_says(embedding, tokens, save):
    source = reference.Wukong(embedding, tokens).eval()
    model, report = convert_wukong_checkpoint(save({"state_dict": source.state_dict()}), return_report=True)
    assert type(model) is WukongModel
    assert not model.training
    assert set(report.used) == set(source.state_dict())
    assert not report.unused
    pixels = torch.randn(3, 3, 32, 32)
    expected = source(pixels, IDS)
    # trimmed to the longest, as a processor makes them, and with the mask that it makes
    for ids in (IDS, IDS[:2, :5]):
        with torch.no_grad():
            output = model(ids, pixels, (ids > 0).long())
        for logits, wanted in zip((output.logits_per_image, output.logits_per_text), expected, strict=True):
            wanted = wanted[:, : len(ids)] if logits is output.logits_per_image else wanted[: len(ids)]
            np.testing.assert_allclose(logits * model.temperature.detach(), wanted, atol=2e-6)


@pytest.mark.parametrize("variant", ["clip", "filip", "wukong"])
@pytest.mark.parametrize("tower", ["vit-b-32", "vit-l-14", "swin-l"])
def test_the_nine_published_models_leave_nothing_unexplained(tower, variant):
    tensors = reference.published_tensors(tower, variant)
    config = infer_wukong_config(tensors)
    converted, report = convert_wukong_state_dict(tensors, config)
    assert not report.unknown
    assert {*report.used, *report.unused} == set(tensors)
    assert all("attn_mask" in name or "position_index" in name for name in report.unused)
    padding = "excluded" if variant == "clip" else "zero"
    preset = WukongConfig.from_preset(f"wukong-{tower}-{variant}", text_padding=padding)
    assert config.to_dict() == preset.to_dict()
    with torch.device("meta"):
        expected = WukongModel(config).state_dict()
    assert {name: t.shape for name, t in converted.items()} == {
        name: t.shape for name, t in expected.items() if name != "temperature"
    }


def swin_tensors(model: WukongModel) -> dict[str, torch.Tensor]:
    """A Swin model's tensors under the authors' names, by rules of their own."""
    names = {
        "vision_projection": "visual.head",
        "vision_model.layernorm": "visual.norm",
        "vision_model.embeddings.patch_embeddings.projection": "visual.patch_embed.proj",
        "vision_model.embeddings.norm": "visual.patch_embed.norm",
        "vision_model.encoder.layers": "visual.layers",
        "text_model.encoder.layers": "transformer.resblocks",
        "text_model.embeddings.token_embedding": "transformer.token_embedding",
        "text_model.embeddings.position_embedding.weight": "transformer.positional_embedding",
        "text_model.final_layer_norm": "transformer.ln_final",
        "text_projection.weight": "transformer.text_projection",
        "token_reduction": "visual.token_reduction",
    }
    parts = {
        "attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
    }
    tensors, fused = {}, {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        if name.startswith("transformer."):
            name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        block, part, kind = name.rsplit(".", 2) if name.count(".") > 2 else (name, "", "")
        if part in ("q_proj", "k_proj", "v_proj"):
            fused.setdefault((block, kind), {})[part[0]] = tensor
            continue
        tensors[name] = tensor.t() if name == "transformer.text_projection" else tensor
    for (block, kind), qkv in fused.items():
        whole = torch.cat([qkv[letter] for letter in "qkv"])
        if block.startswith("visual."):
            tensors[f"{block.removesuffix('attention')}attn.qkv.{kind}"] = whole
        else:
            tensors[f"{block.removesuffix('self_attn')}attn.in_proj_{kind}"] = whole
    tensors.pop("temperature")
    return tensors


def test_swin_there_and_back(save):
    source = tiny_wukong("wukong", "swin")
    tensors = {name: tensor.contiguous() for name, tensor in swin_tensors(source).items()}
    tensors["visual.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    tensors["loss.logit_scale"] = torch.tensor(1 / 0.07).log()
    model, report = convert_wukong_checkpoint(save(tensors), source.config, return_report=True)
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-6, atol=0)
    assert list(report.unused) == ["visual.layers.0.blocks.0.attn.relative_position_index"]
    inferred = infer_wukong_config(reference.published_tensors("swin-l", "wukong")).vision_config
    assert (inferred.window_size, inferred.depths, inferred.num_heads) == (7, [2, 2, 18, 2], [6, 12, 24, 48])


class TestNames:
    def test_clip_layout_at_the_root(self, save):
        """OpenAI's layout has the text tower's own tensors at the root, and the scale too."""
        source = reference.Wukong(512)
        moved = {
            name.removeprefix("transformer.")
            if name.startswith("transformer.") and "resblocks" not in name
            else name: t
            for name, t in source.state_dict().items()
        }
        assert "text_projection" in moved
        moved["logit_scale"] = torch.tensor(3.0)
        model = convert_wukong_checkpoint(save({f"module.{name}": t for name, t in moved.items()}))
        assert model.temperature.item() == pytest.approx(np.exp(-3.0))
        plain = convert_wukong_checkpoint(save({"state_dict": source.state_dict()}))
        for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert name == "temperature" or torch.equal(ours, theirs), name

    def test_queries_keys_values_in_this_order(self):
        assert model_names("transformer.resblocks.3.attn.in_proj_bias") == tuple(
            f"text_model.encoder.layers.3.self_attn.{part}_proj.bias" for part in "qkv"
        )
        assert model_names("token_learner.feat_conv.weight") == ("token_reduction.feat_conv.weight",)
        assert model_names("visual.transformer.resblocks.0.mlp.post_ln.weight") == ()

    def test_a_scale_that_is_no_logarithm_is_reported(self, save):
        tensors = {**reference.Wukong(512).state_dict(), "loss.logit_scale": torch.tensor(100.0)}
        model, report = convert_wukong_checkpoint(save(tensors), return_report=True)
        assert "not the logarithm" in report.unused["loss.logit_scale"]
        assert model.temperature.item() == pytest.approx(0.07)


class TestRefusals:
    @pytest.fixture
    def tensors(self):
        return reference.Wukong(256, 4).state_dict()

    def refused(self, save, content, match, **kwargs):
        with pytest.raises(CheckpointError, match=match):
            convert_wukong_checkpoint(save(content), **kwargs)

    def test_a_swin_without_layers(self, tensors, save):
        tensors["visual.patch_embed.proj.weight"] = torch.zeros(8, 3, 4, 4)
        self.refused(save, tensors, r"missing tensor: visual\.layers\.0\.blocks\.0\.attn\.relative_position_bias_table")

    def test_unknown_tensors_by_name(self, tensors, save):
        tensors["transformer.resblocks.0.gamma_1"] = torch.ones(64)
        self.refused(save, tensors, r"unknown tensors: transformer\.resblocks\.0\.gamma_1")
        _, report = convert_wukong_checkpoint(save(tensors), allow_unknown=True, return_report=True)
        assert report.unknown == ["transformer.resblocks.0.gamma_1"]

    def test_missing_and_misshapen(self, tensors, save):
        del tensors["transformer.ln_final.bias"]
        tensors["visual.proj"] = tensors["visual.proj"][:, :-1]
        with pytest.raises(CheckpointError) as caught:
            convert_wukong_checkpoint(save(tensors))
        assert "misshapen tensor: visual.proj is (128, 255), expected (128, 256)" in str(caught.value)
        assert "no tensor of the checkpoint gives text_model.final_layer_norm.bias" in str(caught.value)
        assert "wukong.ckpt" in str(caught.value)

    def test_twice(self, tensors, save):
        tensors["visual.token_reduction.norm.weight"] = tensors["visual.token_learner.norm.weight"]
        self.refused(save, tensors, "are the same tensor of the model")

    def test_other_models(self, save):
        from modeling_r2d2 import R2D2Model

        r2d2 = official_tensors(R2D2Model(wide_config()))
        assert not is_wukong_state_dict(r2d2)
        self.refused(save, r2d2, "not a Wukong checkpoint")

    def test_a_width_that_tells_no_similarity(self, save):
        self.refused(save, reference.Wukong(64).state_dict(), "64 wide.*give the configuration")

    def test_reduction_that_the_configuration_lacks(self, tensors, save):
        config = infer_wukong_config(tensors)
        config.token_reduction = None
        self.refused(save, tensors, r"unknown tensors: visual\.token_learner", config=config)


def test_command_line(save, tmp_path):
    source = reference.Wukong(256, 4)
    path = save({"state_dict": source.state_dict()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *(chr(0x4E00 + i) for i in range(55))]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    command = ["convert", str(path), str(tmp_path / "out"), "--vocab", str(tmp_path / "vocab.txt")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "WukongModel" in result.output
    model, processor = AutoModel.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(images=tiny_image(), text=["一丁七", "丁" * 40], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 12)
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert model(**inputs).logits_per_image.shape == (1, 2)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "wukong" in card.data.tags
    assert "not in the checkpoint" in card.text  # the temperature
    head = CliRunner().invoke(app, [*command, "--head", "--overwrite"])
    assert "no MLM head" in str(head.exception)
