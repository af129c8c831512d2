"""Warm starts: towers from pre-trained models, everything else random."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining, R2D2Model
from modeling_r2d2.integrations import from_vision_text_pretrained
from tests.integrations.conversion.dual_encoder_sources import save as save_dual_encoder
from tests.tiny import CROSS, TEXT, VIT

VISION = {**VIT, "image_size": 32, "patch_size": 16}
WORDS = {name: TEXT[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}

TOWERS = {
    "whole clip": lambda: CLIPModel(CLIPConfig(vision_config=VISION, text_config=WORDS, projection_dim=8)),
    "clip vision": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=VISION, text_config=WORDS)),
    "vit with classifier": lambda: ViTForImageClassification(ViTConfig(**VISION)),
    "resnet": lambda: ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
}
TEXTS = {"bert": BertModel, "masked language model": BertForMaskedLM}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of every tower, by name; and the towers themselves."""
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    models = {name: build().eval() for name, build in TOWERS.items()}
    models.update({name: build(BertConfig(**TEXT)).eval() for name, build in TEXTS.items()})
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: (root / name, model) for name, model in models.items()}


def tower_of(model):
    for name in ("vision_model", "vit", "bert"):
        model = getattr(model, name, model)
    return model


@pytest.fixture
def bert(folders):
    return folders["bert"][0]


@pytest.mark.parametrize("name", TOWERS)
def test_image_tower(folders, bert, name):
    folder, original = folders[name]
    model = from_vision_text_pretrained(R2D2Model, folder, bert)
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower_of(original)(pixel_values).last_hidden_state
        states = model.get_image_features(pixel_values).last_hidden_state
    if expected.dim() == 4:
        expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(states, expected, atol=1e-6, rtol=0)
    assert model.config.vision_pooling == ("mean" if name in ("siglip", "resnet") else "cls")
    assert not model.training


@pytest.mark.parametrize("name", TEXTS)
def test_text_tower(folders, name):
    folder, original = folders[name]
    model = R2D2ForPreTraining.from_vision_text_pretrained(folders["clip vision"][0], folder)
    input_ids = torch.randint(5, TEXT["vocab_size"], (2, 7))
    with torch.no_grad():
        expected = tower_of(original)(input_ids).last_hidden_state
        states = model.get_text_features(input_ids).last_hidden_state
    torch.testing.assert_close(states, expected, atol=1e-6, rtol=0)
    assert isinstance(model, R2D2ForPreTraining)
    assert model.mlm_head.decoder.weight is model.text_model.embeddings.word_embeddings.weight


def test_default_configuration(folders, bert):
    config = R2D2Model.from_vision_text_pretrained(folders["whole clip"][0], bert).config
    cross = config.cross_encoder_config
    assert (cross.hidden_size, cross.num_attention_heads, cross.intermediate_size) == (32, 4, 64)
    assert cross.num_hidden_layers == 6
    assert config.projection_dim == 768
    assert config.vision_config.image_size == 32
    assert config.text_config.max_position_embeddings == TEXT["max_position_embeddings"]


def test_configuration_and_overrides(folders, bert):
    given = R2D2Config(cross_encoder_config=CROSS, text_config=TEXT, projection_dim=16, max_text_length=30)
    config = from_vision_text_pretrained(R2D2Model, folders["resnet"][0], bert, given, projection_dim=20).config
    assert config.cross_encoder_config.num_hidden_layers == CROSS["num_hidden_layers"]
    assert (config.projection_dim, config.max_text_length) == (20, 30)
    assert config.vision_config.model_type == "resnet"
    assert config.vision_pooling == "mean"  # of the tower, not of the CLIP tower in `given`
    prd2 = from_vision_text_pretrained(R2D2Model, folders["resnet"][0], bert, cross_encoder_config=None)
    assert not prd2.can_rank
    pooled = from_vision_text_pretrained(R2D2Model, folders["clip vision"][0], bert, vision_pooling="mean")
    assert pooled.config.vision_pooling == "mean"
    with pytest.raises(ValueError, match="vision_config comes from the pre-trained tower"):
        from_vision_text_pretrained(R2D2Model, folders["resnet"][0], bert, vision_config={})


def test_random_where_nothing_is_given(folders, bert):
    arguments = (R2D2Model, folders["clip vision"][0], bert)
    first, second = from_vision_text_pretrained(*arguments), from_vision_text_pretrained(*arguments)
    same = {
        name.split(".")[0]
        for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True)
        if a.dim() > 1 and torch.equal(a, b)
    }
    assert same == {"vision_model", "text_model"}


def test_round_trip(folders, bert, tmp_path):
    model = from_vision_text_pretrained(R2D2Model, folders["siglip"][0], bert)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_tower_that_lacks_weights(folders, bert, tmp_path):
    folder, model = folders["clip vision"]
    model.config.save_pretrained(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layers.1.mlp.fc1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of its CLIPVisionModel: encoder\.layers\.1\.mlp\.fc1\.weight"):
        from_vision_text_pretrained(R2D2Model, tmp_path, bert)


def test_wrong_kinds(folders, bert, tmp_path):
    with pytest.raises(ValueError, match="'bert', which does not read pixels"):
        from_vision_text_pretrained(R2D2Model, bert, bert)
    with pytest.raises(ValueError, match="is a 'resnet'; the text tower of R2D2 is a 'bert'"):
        from_vision_text_pretrained(R2D2Model, folders["resnet"][0], folders["resnet"][0])
    for kind in ("chinese_clip", "siglip"):
        towers = save_dual_encoder(tmp_path / kind, kind)
        for clip in (folders["resnet"][0], towers):
            with pytest.raises(ValueError, match=f"is a '{kind}', two towers .* `--model {towers}` begins with both"):
                from_vision_text_pretrained(R2D2Model, clip, towers)
    with pytest.raises(OSError, match="absent"):
        from_vision_text_pretrained(R2D2Model, tmp_path / "absent", bert)
