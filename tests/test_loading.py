"""`modeling_r2d2.inference.loading`: no code of strangers, all weights of the file, one line about what is wrong."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining, R2D2Model, R2D2Processor, WukongModel
from modeling_r2d2.cli import app
from modeling_r2d2.inference.loading import (
    load_config,
    load_processor,
    load_tokenizer,
    load_whole,
    trusting_remote_code,
)
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.warm_start import from_vision_text_pretrained
from tests.helpers import save_pairs, tiny_image, tiny_model, tiny_processor

PLANT = "from pathlib import Path\nPath({mark!r}).write_text('ran')\n"


@pytest.fixture
def folder(tmp_path):
    """A whole tiny model with its processor."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(path, change) -> None:
    held = json.loads(path.read_text(encoding="utf-8"))
    change(held)
    path.write_text(json.dumps(held), encoding="utf-8")


def plant(folder, mark) -> None:
    """Code in every file that a folder could bring, and references to it from every configuration."""
    for name in ("stranger", "modeling_r2d2", "configuration_r2d2", "processing_r2d2"):
        classes = "\n".join(f"class {each}: pass" for each in ("Model", "Config", "Tokenizer", "Processor", "Images"))
        (folder / f"{name}.py").write_text(PLANT.format(mark=str(mark)) + classes, encoding="utf-8")
    references = {
        "AutoConfig": "stranger.Config",
        "AutoModel": "stranger.Model",
        "AutoProcessor": "stranger.Processor",
        "AutoImageProcessor": "stranger.Images",
        "AutoTokenizer": ["stranger.Tokenizer", None],
    }
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        edit(folder / name, lambda held: held.update(auto_map=references))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(PLANT.format(mark=str(mark)), encoding="utf-8")


def test_own_classes_win_over_code_in_the_folder(folder, tmp_path):
    """The code beside an R2D2 is never needed here."""
    plant(folder, tmp_path / "mark")
    edit(folder / "tokenizer_config.json", lambda held: held.pop("auto_map"))
    for trusted in (False, True):
        with trusting_remote_code(trusted):
            assert type(load_whole(AutoModel, folder)) is R2D2Model
            assert type(load_processor(AutoProcessor, folder)) is R2D2Processor
            assert type(load_model(str(folder))[0]) is R2D2Model
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "verb",
    [
        "match {picture} 猫 --model {model}",
        "index {pictures} --output {out} --model {model}",
        "evaluate --data {pairs} --model {model} --output {out}",
        "pretrain --data {pairs} --output {out} --model {model} --steps 1",
        "pretrain --data {pairs} --output {out} --clip {model} --roberta {model} --steps 1",
        "pretrain --data {pairs} --output {out} --config {model} --tokenizer {model} --steps 1",
        "finetune retrieval --data {pairs} --output {out} --model {model}",
        "calibrate {model} --data {pairs}",
        "export {model} --output {out}",
        "card {model} --measure-speed",
        "app --model {model}",
        "data matching-pairs {pairs} {out} --negatives fgr --model {model}",
    ],
)
@pytest.mark.parametrize("kind", ["tokenizer", "everything"])
def test_no_verb_runs_code_of_a_folder(folder, tmp_path, monkeypatch, verb, kind):
    """Not where somebody, or a pipe, answers `y` to every question; and the refusal names the option."""
    mark = tmp_path / "mark"
    if kind == "everything":  # a model type that only the folder's code knows
        plant(folder, mark)
        edit(folder / "config.json", lambda held: held.update(model_type="stranger"))
    else:
        plant(folder, mark)
        for name in ("tokenizer_config.json", "config.json"):
            edit(folder / name, lambda held: held.update(tokenizer_class="StrangerTokenizer"))
    images, pairs = tmp_path / "pictures", save_pairs(tmp_path)
    monkeypatch.setattr("modeling_r2d2.app.launch_app", lambda *args, **kwargs: pytest.fail("the page opened"))
    names = {"picture": images / "0.png", "pictures": images, "pairs": pairs}
    words = verb.format(model=folder, out=tmp_path / "out", **names).split()
    done = CliRunner().invoke(app, words, input="y\n" * 50)
    assert not mark.exists()
    assert done.exit_code != 0
    assert isinstance(done.exception, ValueError), repr(done.exception)
    assert "\n" not in str(done.exception)


def test_code_runs_where_it_is_asked_for(folder, tmp_path):
    """`--trust-remote-code`, for a tokenizer of one's own."""
    code = "from transformers import BertTokenizer\n\nclass OwnTokenizer(BertTokenizer):\n    pass\n"
    (folder / "own.py").write_text(code, encoding="utf-8")
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    edit(folder / "tokenizer_config.json", lambda held: held.update(own))
    image = tmp_path / "picture.png"
    tiny_image().save(image)
    words = ["match", str(image), "猫", "--model", str(folder), "--json"]
    refused = CliRunner().invoke(app, words)
    assert "--trust-remote-code" in str(refused.exception)
    assert CliRunner().invoke(app, [*words, "--trust-remote-code"], catch_exceptions=False).exit_code == 0
    with pytest.raises(ValueError, match="--trust-remote-code"):  # and not for good
        load_tokenizer(folder)


def test_mistyped_folders(tmp_path, folder):
    """A path is a path; only what looks like a Hub name may be one."""
    for place in (tmp_path / "nowhere", "./nowhere", "runs/a/b", "~/model"):
        for load in (load_model, load_tokenizer):
            with pytest.raises(OSError) as refused:
                load(str(place))
            assert str(refused.value) == f"no such folder: {place}"
    with pytest.raises(OSError, match=r"^no such folder: runs/demoo; and no such model could be had from the Hub"):
        load_model("runs/demoo")
    (tmp_path / "empty").mkdir()
    for place, reason in ((tmp_path / "empty", "no config.json"), (folder / "config.json", "is a file")):
        with pytest.raises(ValueError, match=reason):
            load_model(str(place))


def damage(folder, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "no header":
        weights.write_bytes(b"\xff" * 100)
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "not JSON":
        (folder / "config.json").write_text('{"model_type": "r2d2",\n"a": }', encoding="utf-8")
    elif how == "deep JSON":
        (folder / "config.json").write_text("[" * 100_000, encoding="utf-8")
    elif how == "no object":
        (folder / "config.json").write_text("[1]", encoding="utf-8")
    elif how == "not UTF-8":
        (folder / "config.json").write_bytes(b'{"a": "\xff"}')
    elif how == "missing shard":
        tensors = load_file(weights)
        weights.unlink()
        R2D2Model.from_pretrained(None, config=R2D2Config.from_pretrained(folder), state_dict=tensors).save_pretrained(
            folder, max_shard_size="100kB"
        )
        min(folder.glob("model-*.safetensors")).unlink()
    elif how == "pickle":
        import pickle

        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    else:
        part, name, value = json.loads(how)
        edit(folder / "config.json", lambda held: (held[part] if part else held).update({name: value}))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut short", "model.safetensors is damaged"),
        ("no header", "model.safetensors is damaged"),
        ("empty", "model.safetensors is damaged"),
        ("not JSON", "config.json:2 is not JSON"),
        ("deep JSON", "config.json is not JSON that can be read"),
        ("no object", "config.json holds a list"),
        ("not UTF-8", "config.json is not UTF-8"),
        ("missing shard", "lacks 1 of"),
        ("pickle", "pickle"),
        ('["text_config", "num_hidden_layers", 10000000]', "text_config.num_hidden_layers is 10000000"),
        ('["vision_config", "num_hidden_layers", -1]', "vision_config.num_hidden_layers is -1"),
        ('["cross_encoder_config", "num_hidden_layers", 0]', "cross_encoder_config.num_hidden_layers is 0"),
        ('["text_config", "hidden_size", "32"]', "text_config.hidden_size is '32'"),
        ('["text_config", "vocab_size", 4000000]', "at least 128,0"),
        ('["text_config", "num_hidden_layers", 999]', "999 layers"),
        ('["text_config", "vocab_size", 100]', "another shape .*word_embeddings"),
        ('["", "projection_dim", 8]', "another shape"),
        ('["", "projection_dim", true]', "projection_dim is True"),
        ('["text_config", "hidden_act", "nonsense"]', "nonsense"),
        ('["vision_config", "model_type", "nonsense"]', "nonsense"),
        ('["", "vision_config", 7]', "."),
        ('["", "model_type", "bert"]', "(?i)bert"),
    ],
)
def test_a_broken_folder_is_one_line(folder, how, reason):
    """Whatever the libraries raise."""
    damage(folder, how)
    for load in (load_model, lambda place: load_whole(AutoModel, place), lambda place: load_whole(R2D2Model, place)):
        with pytest.raises(ValueError, match=reason) as refused:
            load(str(folder))
        assert "\n" not in str(refused.value)
        assert "weights_only" not in str(refused.value)
        assert str(folder) in str(refused.value)


@pytest.mark.parametrize("part", ["cross_encoder_config", "text_config", "vision_config"])
def test_layers_left_out_are_refused(folder, part):
    """The file holds two layers, the configuration says one."""
    edit(folder / "config.json", lambda held: held[part].update(num_hidden_layers=1))
    model, info = R2D2Model.from_pretrained(folder, output_loading_info=True)
    assert any("layer" in name and ".1." in name for name in info["unexpected_keys"])
    for kind in (R2D2Model, AutoModel, R2D2ForPreTraining):
        with pytest.raises(ValueError, match=r"holds \d+ weights that a \w+ of its config.json does not have"):
            load_whole(kind, folder, fresh=("mlm_head.",))


def test_a_ranker_is_not_left_out(folder):
    """`cross_encoder_config` null beside the weights of a ranker."""
    edit(folder / "config.json", lambda held: held.update(cross_encoder_config=None))
    with pytest.raises(ValueError, match="weights that a R2D2Model"):
        load_model(str(folder))


def test_layers_left_out_of_a_wukong(tmp_path):
    """The same mechanism."""
    from tests.wukong.tiny import tiny_wukong

    model = tiny_wukong()
    model.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda held: held["text_config"].update(num_hidden_layers=1))
    with pytest.raises(ValueError, match="weights that a WukongModel"):
        load_whole(WukongModel, tmp_path)


def test_layers_left_out_of_a_warm_start(tmp_path):
    """A tower's checkpoint may hold heads, but no layers that its configuration leaves out."""
    model = tiny_model()
    for name, tower in (("clip", model.vision_model), ("roberta", model.text_model)):
        tower.save_pretrained(tmp_path / name)
    from_vision_text_pretrained(R2D2Model, tmp_path / "clip", tmp_path / "roberta")
    for name in ("clip", "roberta"):
        shutil.copytree(tmp_path / name, tmp_path / f"short-{name}")
        edit(tmp_path / f"short-{name}" / "config.json", lambda held: held.update(num_hidden_layers=1))
    for clip, roberta in (("short-clip", "roberta"), ("clip", "short-roberta")):
        with pytest.raises(ValueError, match="a layer that it leaves out"):
            from_vision_text_pretrained(R2D2Model, tmp_path / clip, tmp_path / roberta)


def test_what_else_lies_in_the_file_is_refused(folder):
    """A tensor that no R2D2 has."""
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "adapter.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="such as adapter.weight"):
        load_model(str(folder))


def test_configurations_alone(folder, tmp_path):
    """A file or a folder; of this model type."""
    assert load_config(R2D2Config, folder / "config.json").projection_dim == 16
    edit(folder / "config.json", lambda held: held["text_config"].update(num_hidden_layers=10**7))
    with pytest.raises(ValueError, match="num_hidden_layers is 10000000"):
        load_config(R2D2Config, folder / "config.json")


def test_only_one_module_loads():
    """Every other module goes through it; what is called on something else than a place is named here."""
    root = Path(__file__).parents[1]
    allowed = {
        "checkpoints.py: kind.from_pretrained(None",  # a state dict in memory
        "adapters.py: peft.PeftModel.from_pretrained(model",  # within one_line_errors
        "demo_run.py: AutoModel.from_pretrained(output",  # what has just been written, as its reader will
        "sentence_transformers.py: cls.load_config(str(model_name_or_path)",  # within one_line_errors
        "models.py: R2D2OnnxModel.from_pretrained(model",  # our own folder of graphs, which loads through loading.py
    }
    found = set()
    for path in (path for part in ("modeling_r2d2", "hub_cards", "processing") for path in (root / part).rglob("*.py")):
        code = path.read_text(encoding="utf-8")
        if not re.search("from_pretrained|load_config|get_config_dict", code):
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                call = f"{ast.unparse(node.func)}({ast.unparse(node.args[0])}"
                loads = node.func.attr in ("from_pretrained", "load_config", "get_config_dict")
                if loads and path != root / "modeling_r2d2/inference/loading.py" and not call.startswith("super()"):
                    found.add(f"{path.name}: {call}")
    assert found - allowed == {"components.py: DDIMScheduler.load_config(source"}  # within one_line_errors


@pytest.mark.parametrize("harm", ["gone", "cut", "list"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_a_torn_processor_is_refused_by_the_name_of_its_file(folder, name, harm):
    """Transformers makes a tokenizer without tokenizer.json too, to which every text is [UNK]."""
    path = folder / name
    if harm == "gone":
        path.unlink()
    else:
        path.write_text('{"a": ' if harm == "cut" else "[1, 2]", encoding="utf-8")
    with pytest.raises((ValueError, OSError)) as caught:
        load_processor(AutoProcessor, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message or name == "processor_config.json"
    if name != "processor_config.json" and harm != "gone":
        with pytest.raises(ValueError, match=re.escape(name)):
            load_tokenizer(folder)


def test_a_image_given_as_a_model(folder, tmp_path):
    tiny_image(0).save(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="cat.png is a file; a model is a folder"):
        load_model(tmp_path / "cat.png")


def test_a_long_reason_is_cut(folder):
    edit(folder / "config.json", lambda held: held["vision_config"].update(model_type="no_such_type"))
    with pytest.raises(ValueError, match="no_such_type") as caught:
        load_whole(R2D2Model, folder)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", [R2D2Model, AutoModel])
def test_a_folder_that_asks_for_tuples(folder, kind):
    """Its outputs are read by name here all the same."""
    edit(folder / "config.json", lambda held: held.update(return_dict=False))
    pixels = torch.zeros(1, 3, 32, 32)
    assert isinstance(kind.from_pretrained(folder)(pixel_values=pixels), tuple)
    assert load_whole(kind, folder).get_image_features(pixels).pooler_output.shape == (1, 16)
