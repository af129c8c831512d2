"""Dual encoders of transformers as R2D2 models without a ranker: numbers, preprocessing, folders, refusals."""

import json
import shutil

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, Siglip2Config
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Config, R2D2ForImageClassification, R2D2ForPreTraining, R2D2Model, R2D2Processor
from modeling_r2d2.cli import app
from modeling_r2d2.inference.encoding import encode_images, encode_texts
from modeling_r2d2.inference.loading import load_config, load_dual_encoder, load_processor, load_whole
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from tests.helpers import tiny_image
from tests.integrations.conversion.dual_encoder_sources import KINDS, own_inputs, save

TEXTS = ["一只猫", "两条大狗在草地跑", "cat", "一"]
SIZES = ((70, 31), (31, 90), (32, 32), (33, 34), (200, 41), (9, 7))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {kind: save(root / kind, kind) for kind in KINDS}


def images() -> list[Image.Image]:
    """Of odd sizes and modes."""
    odd = [tiny_image(n, *size) for n, size in enumerate(SIZES)]
    return odd + [tiny_image(n).convert(mode) for n, mode in enumerate(("L", "CMYK", "P", "1", "YCbCr"))]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_sources_class(sources, kind, attn):
    """Embeddings and logits from pictures and texts, each prepared by its own processor."""
    own = AutoModel.from_pretrained(sources[kind], attn_implementation=attn).eval()
    model = load_whole(R2D2Model, sources[kind], attn_implementation=attn)
    assert type(own).__name__ != "R2D2Model"
    assert model.text_model.config._attn_implementation == model.vision_model.config._attn_implementation == attn
    theirs = own_inputs(kind, AutoProcessor.from_pretrained(sources[kind]), images(), TEXTS)
    ours = load_processor(R2D2Processor, sources[kind])(images=images(), text=TEXTS, return_tensors="pt")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    if "attention_mask" in theirs:
        assert torch.equal(ours["attention_mask"], theirs["attention_mask"])
    theirs = {name: value for name, value in theirs.items() if kind == "chinese_clip" or name != "token_type_ids"}
    with torch.no_grad():
        found, expected = model(**ours), own(**theirs)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-5, msg=name)
    spread = expected.logits_per_image.std()
    assert float(spread) > 0.1, "logits that do not differ prove nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_accounted_for(sources, kind):
    model, info, origins = load_dual_encoder(R2D2Model, sources[kind])
    held = set(AutoModel.from_pretrained(sources[kind]).state_dict())
    assert set(origins.used) == held
    assert not origins.unused
    assert {name: names for name, names in info.items() if names} == {}
    taken = {name for name in origins.used.values() if name in model.state_dict()}
    assert taken | {"temperature"} == set(model.state_dict())
    assert not model.can_rank


@pytest.mark.parametrize("kind", KINDS)
def test_folder(sources, kind, tmp_path):
    """The Auto classes load it, and it computes the same, also in batches trimmed to their longest text."""
    report = convert_dual_encoder_to_folder(sources[kind], tmp_path / "out")
    assert not report.unused
    model, processor = (
        AutoModel.from_pretrained(tmp_path / "out").eval(),
        AutoProcessor.from_pretrained(tmp_path / "out"),
    )
    assert type(model) is R2D2Model
    assert type(processor) is R2D2Processor
    direct, own = load_model(sources[kind])
    inputs = processor(images=images(), text=TEXTS, return_tensors="pt")
    again = own(images=images(), text=TEXTS, return_tensors="pt")
    assert all(torch.equal(inputs[name], again[name]) for name in ("pixel_values", "input_ids", "attention_mask"))
    with torch.no_grad():
        output, same = model(**inputs), direct(**inputs)
    torch.testing.assert_close(output.logits_per_image, same.logits_per_image, rtol=0, atol=0)
    texts = encode_texts(model, processor, TEXTS, batch_size=2)
    torch.testing.assert_close(texts.embeds, output.text_embeds, rtol=0, atol=1e-6)
    seen = encode_images(model, processor, images()[:3])
    torch.testing.assert_close(seen.embeds, output.image_embeds[:3], rtol=0, atol=1e-6)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert transformers.AutoModel.from_pretrained(sources[kind]).__class__.__name__ in card.content
    assert str(sources[kind].parent) not in card.content
    with pytest.raises(FileExistsError, match="already holds"):
        convert_dual_encoder_to_folder(sources[kind], tmp_path / "out")


def test_other_classes_take_the_towers(sources):
    """What begins with a model's towers begins with a dual encoder's too."""
    training = load_whole(R2D2ForPreTraining, sources["clip"])
    assert not training.can_rank
    classifier = load_whole(R2D2ForImageClassification, sources["siglip"], fresh=("classifier.",))
    model = load_whole(R2D2Model, sources["siglip"])
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embeds = torch.nn.functional.normalize(model.get_image_features(pixel_values).pooler_output)
        logits = classifier.classifier(embeds) / model.temperature
        torch.testing.assert_close(classifier(pixel_values).logits, logits)


def test_temperature_and_bias(sources):
    model = load_whole(R2D2Model, sources["siglip"])
    assert float(model.temperature) == pytest.approx(torch.exp(torch.tensor(-4.7)).item(), rel=1e-6)
    assert model.config.logit_bias == pytest.approx(-12.9, rel=1e-6)
    assert load_whole(R2D2Model, sources["clip"]).config.logit_bias == 0
    # a scale of 1, beyond this package's bounds of the temperature
    tensors = load_file(sources["siglip"] / "model.safetensors")
    assert any(name.endswith("logit_scale") for name in tensors)


def changed(source, target, **tensors):
    """A copy of a source with other tensors; None leaves one out."""
    shutil.copytree(source, target)
    held = load_file(target / "model.safetensors")
    for name, value in tensors.items():
        key = next(key for key in held if key.endswith(name.replace("__", ".")))
        held.pop(key)
        if value is not None:
            held[key] = value
    save_file(held, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_temperature_beyond_the_usual_bounds(sources, tmp_path):
    folder = changed(sources["siglip"], tmp_path / "cold", logit_scale=torch.zeros(1))
    model = load_whole(R2D2Model, folder)
    assert float(model.bounded_temperature()) == 1.0


def edit(folder, file="config.json", **values):
    path = folder / file
    held = json.loads(path.read_text(encoding="utf-8"))
    held.update(values)
    path.write_text(json.dumps(held), encoding="utf-8")


def test_refusals(sources, tmp_path):
    lacking = changed(sources["clip"], tmp_path / "lacking", visual_projection__weight=None)
    with pytest.raises(ValueError, match=r"lacks 1 weights of a CLIPModel, such as visual_projection\.weight"):
        load_whole(R2D2Model, lacking)
    # the vocabulary of another
    other = tmp_path / "other"
    shutil.copytree(sources["chinese_clip"], other)
    AutoProcessor.from_pretrained(sources["clip"]).tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match="they do not belong together"):
        load_processor(R2D2Processor, other)
    # no weights at all
    empty = tmp_path / "empty"
    shutil.copytree(sources["clip"], empty)
    (empty / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="empty: .*no file named model.safetensors"):
        load_whole(R2D2Model, empty)
    # towers of two widths, and no projection between them
    uneven = tmp_path / "uneven"
    shutil.copytree(sources["siglip"], uneven)
    values = json.loads((uneven / "config.json").read_text(encoding="utf-8"))
    edit(uneven, text_config={**values["text_config"], "projection_size": 24})
    with pytest.raises(ValueError, match="projection 'none': text_config is 24 wide, and projection_dim is 32"):
        load_config(R2D2Config, uneven)
    text = load_processor(R2D2Processor, sources["altclip"])(text=["猫"], return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="exceeds the 38 positions"):
        load_whole(R2D2Model, sources["altclip"]).get_text_features(text.repeat(1, 13))


def test_sources_that_are_not_taken_over(sources, tmp_path):
    naflex = tmp_path / "naflex"
    Siglip2Config().save_pretrained(naflex)
    with pytest.raises(ValueError, match="NaFlex .*take a SigLIP 2 of a fixed size"):
        convert_dual_encoder_to_folder(naflex, tmp_path / "out")
    own_code = tmp_path / "jina"
    own_code.mkdir()
    (own_code / "config.json").write_text(
        json.dumps({"model_type": "jina_clip", "auto_map": {"AutoModel": "modeling_clip.JinaCLIPModel"}})
    )
    with pytest.raises(ValueError, match="'jina_clip' whose code is its own, not transformers'"):
        convert_dual_encoder_to_folder(own_code, tmp_path / "out")
    (own_code / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    with pytest.raises(ValueError, match="is a 'unheard_of', not one of the dual encoders"):
        convert_dual_encoder_to_folder(own_code, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("naflex", "NaFlex kind"),
        ("jina", "whose code is its own"),
        ("clipseg", "is a 'clipseg', of which no R2D2 can be made: take one of"),
    ],
)
def test_every_verb_says_why_a_source_is_not_taken_over(sources, name, message, tmp_path):
    """One line, whoever loads it."""
    folder = tmp_path / name
    if name == "naflex":
        Siglip2Config().save_pretrained(folder)
    else:  # with all that a repository of another kind holds beside it
        shutil.copytree(sources["clip"], folder)
        own_code = {"auto_map": {"AutoModel": "modeling_clip.JinaCLIPModel"}} if name == "jina" else {}
        edit(folder, model_type={"jina": "jina_clip"}.get(name, name), **own_code)
    tiny_image(0).save(tmp_path / "0.png")
    (tmp_path / "pairs.jsonl").write_text('{"image": "0.png", "text": "猫"}\n', encoding="utf-8")
    data, out = ("--data", tmp_path / "pairs.jsonl"), ("--output", tmp_path / "out")
    for command in (
        ("index", tmp_path, "--model", folder, *out),
        ("match", tmp_path / "0.png", "猫", "--model", folder),
        ("export", folder, *out),
        ("app", "--model", folder),
        ("finetune", "retrieval", "--model", folder, *data, *out),
        ("pretrain", "--model", folder, *data, *out),
        ("convert", folder, tmp_path / "out"),
    ):
        result = CliRunner().invoke(app, [str(each) for each in command])
        assert isinstance(result.exception, ValueError), command
        assert message in str(result.exception), command
        assert "\n" not in str(result.exception)
    for kind, load in ((R2D2Model, load_whole), (R2D2Config, load_config), (R2D2Processor, load_processor)):
        with pytest.raises(ValueError, match=message):
            load(kind, folder)
    assert not (tmp_path / "out").exists()


def test_command(sources, tmp_path):
    runner = CliRunner()
    result = runner.invoke(app, ["convert", str(sources["chinese_clip"]), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "0 not used" in result.output
    assert load_whole(R2D2Model, tmp_path / "out").config.text_config.model_type == "bert"
    result = runner.invoke(app, ["convert", str(sources["clip"]), str(tmp_path / "more"), "--vocab", "vocab.txt"])
    assert "--vocab: of checkpoint files alone" in str(result.exception)


def test_search_takes_a_source_directly(sources, tmp_path):
    """An index remembers the source, and is searched without naming it again; a SigLIP's texts are padded."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        tiny_image(number).save(tmp_path / "images" / f"{number}.png")
    for kind in ("chinese_clip", "siglip2"):
        index = str(tmp_path / kind)
        given = ["index", str(tmp_path / "images"), "--output", index, "--model", str(sources[kind])]
        made = CliRunner().invoke(app, given)
        assert made.exit_code == 0, made.output
        found = CliRunner().invoke(app, ["search", index, "一只猫"])
        assert found.exit_code == 0, found.output
        assert "2.png" in found.output


@pytest.mark.parametrize("kind", ["clip", "siglip", "altclip"])
def test_export(sources, kind, tmp_path):
    """Graphs of a source compute what it does, for any number of texts, also in int8; one that reads its padding takes
    texts of its own length alone."""
    pytest.importorskip("onnxruntime")
    from modeling_r2d2.integrations.onnx_export import export_onnx

    export_onnx(sources[kind], tmp_path / "fp32")
    graphs, own = load_model(tmp_path / "fp32")
    model, processor = load_model(sources[kind])
    inputs = processor(images=images(), text=TEXTS, return_tensors="pt")
    assert all(
        torch.equal(own(images=images(), text=TEXTS, return_tensors="pt")[name], inputs[name]) for name in inputs
    )
    with torch.no_grad():
        expected = model(**inputs)
    torch.testing.assert_close(graphs(**inputs).logits_per_image, expected.logits_per_image, rtol=1e-4, atol=1e-3)
    one = {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(graphs(**one).text_embeds, expected.text_embeds[:1], rtol=0, atol=1e-4)
    if model.config.attend_padding:
        with pytest.raises(ValueError, match="texts of 5 tokens: this text tower reads padding too"):
            graphs.get_text_features(inputs["input_ids"][:, :5])
