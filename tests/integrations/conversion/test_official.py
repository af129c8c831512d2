"""Official checkpoints: everything used, listed with a reason, or refused by name."""

import json
import logging
import types
from functools import partial

import pytest
import torch
from torch import nn

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining, R2D2Model
from modeling_r2d2.integrations import (
    CheckpointError,
    convert_official_checkpoint,
    convert_state_dict,
    infer_config,
    read_checkpoint,
)
from modeling_r2d2.integrations.official_names import model_name, official_name, unused_reason
from tests import golden
from tests.integrations.conversion.official_files import head_tensors, official_tensors, training_leftovers, wide_config

convert = partial(convert_official_checkpoint, return_report=True)


@pytest.fixture
def source():
    """A model of random weights, every parameter of which is told from all others."""
    model = R2D2Model(wide_config()).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.fixture
def tensors(source):
    return official_tensors(source)


@pytest.fixture
def save(tmp_path):
    def write(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def same_weights(model, source):
    expected = source.state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("mlm_head."):
            assert torch.equal(tensor, expected[name]), name


class TestFullSize:
    """The key lists of the official models; names and shapes alone, so the tensors are empty ones."""

    @pytest.mark.parametrize(
        ("listing", "preset", "parameters"),
        [
            ("r2d2_vit_l_224", "r2d2-vit-l-14", 522_803_461),
            ("r2d2_vit_l_336", "r2d2-vit-l-14-336", 523_131_141),
            ("r2d2_vit_b_224", "r2d2-vit-b-16", 302_671_109),
            ("r2d2_retrieval_vit_b_224", "r2d2-vit-b-16", 302_671_109),
            ("r2d2_matching_vit_b_224", "r2d2-vit-b-16", 302_671_109),
            ("prd2_vit_l_224", "prd2-vit-l-14", 406_232_577),
        ],
    )
    def test_nothing_unexplained(self, listing, preset, parameters):
        path = golden.GOLDEN / "keys" / f"{listing}.json"
        keys = json.loads(path.read_text(encoding="utf-8"))["keys"]
        tensors = {
            name: torch.empty(key["shape"], dtype=getattr(torch, key["dtype"]), device="meta")
            for name, key in keys.items()
        }
        config = infer_config(tensors)
        assert config.to_dict() == R2D2Config.from_preset(preset).to_dict()
        converted, report = convert_state_dict(tensors, config)
        assert report.unknown == []
        assert {*report.used, *report.unused} == set(keys)
        assert not report.used.keys() & report.unused.keys()
        assert not report.has_head
        assert sum(tensor.numel() for tensor in converted.values()) == parameters
        assert {keys[name]["kind"] for name in report.used} == {"param"}
        with torch.device("meta"):
            model = R2D2Model(config)
        model.load_state_dict(converted, assign=True)  # strict: raises if a name is missing, or one too many

    def test_reasons(self):
        keys = json.loads((golden.GOLDEN / "keys" / "r2d2_vit_l_224.json").read_text(encoding="utf-8"))["keys"]
        unused = {name for name in keys if unused_reason(name)}
        assert unused == {
            "visual_encoder.embeddings.position_ids",
            "visual_encoder.post_layernorm.weight",
            "visual_encoder.post_layernorm.bias",
            "text_encoder.embeddings.position_ids",
            "text_encoder.pooler.dense.weight",
            "text_encoder.pooler.dense.bias",
            *(
                f"{layer}.embeddings.{name}"
                for layer in ("text_joint_layer", "img_joint_layer")
                for name in (
                    "position_ids",
                    "word_embeddings.weight",
                    "position_embeddings.weight",
                    "LayerNorm.weight",
                    "LayerNorm.bias",
                )
            ),
        }

    def test_names_there_and_back(self):
        keys = json.loads((golden.GOLDEN / "keys" / "r2d2_vit_l_224.json").read_text(encoding="utf-8"))["keys"]
        used = [name for name in keys if not unused_reason(name)]
        assert [official_name(model_name(name)) for name in used] == used


class TestWeights:
    def test_exact_with_sizes_read_off_the_tensors(self, source, tensors, save):
        model, report = convert(save({"model": tensors, "epoch": 3, "optimizer": {"state": {}}}))
        assert type(model) is R2D2Model
        assert not model.training
        assert infer_config(tensors).to_dict() == source.config.to_dict()
        same_weights(model, source)
        assert set(report.used.values()) == set(source.state_dict())

    def test_pre_ranking_only(self, save):
        source = R2D2Model(wide_config(ranker=False)).eval()
        model, report = convert(save({"model": official_tensors(source)}))
        assert model.config.cross_encoder_config is None
        same_weights(model, source)
        assert len(report.unused) == 6

    @pytest.mark.parametrize("case", ["r2d2_b16", "prd2_l14"])
    def test_authors_own_file(self, case):
        path = golden.GOLDEN / case / "checkpoint.pth"
        original = read_checkpoint(path)
        model, report = convert(path, golden.config(case))
        assert report.unknown == []
        assert {*report.used, *report.unused} == set(original)
        state_dict = model.state_dict()
        for name, target in report.used.items():
            assert torch.equal(original[name], state_dict[target]), name

    def test_bare_state_dict_and_module_prefix(self, source, tensors, save):
        for number, content in enumerate(
            (
                tensors,
                {f"module.{name}": tensor for name, tensor in tensors.items()},
                {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
                {"state_dict": tensors},
            )
        ):
            model, _ = convert(save(content, f"{number}.pth"))
            same_weights(model, source)

    def test_old_serialization(self, source, tensors, tmp_path):
        torch.save({"model": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        model, _ = convert(tmp_path / "old.pth")
        same_weights(model, source)

    def test_half_precision_becomes_float32(self, tensors, save):
        half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        model, _ = convert(save({"model": half}))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(model.vision_projection.weight, half["vision_proj.weight"].float())

    def test_model_outlives_the_file(self, source, tensors, save):
        path = save({"model": tensors})
        model, _ = convert(path)
        path.write_bytes(b"\0" * path.stat().st_size)
        same_weights(model, source)

    def test_given_config_is_used_and_left_alone(self, tensors, save):
        config = wide_config()
        config.vision_config.num_attention_heads = 4
        before = config.to_dict()
        model, _ = convert(save({"model": tensors}), config)
        assert model.config.vision_config.num_attention_heads == 4
        assert config.to_dict() == before

    def test_towers_alone_by_config(self, source, tensors, save):
        model, report = convert(save({"model": tensors}), wide_config(ranker=False))
        assert not model.can_rank
        same_weights(model, source)
        assert "none" in report.unused["itm_head.weight"]
        assert {*report.used, *report.unused} == set(tensors)

    def test_unused_tensors_are_logged(self, tensors, save, caplog):
        with caplog.at_level(logging.WARNING, logger="modeling_r2d2"):
            model = convert_official_checkpoint(save({"model": tensors}))
        assert isinstance(model, R2D2Model)
        for name in tensors:
            assert (name in caplog.text.split()) == (unused_reason(name) is not None)


class TestPreTrainingFiles:
    """Momentum copies and queues are listed; an MLM head that fits is taken."""

    @pytest.mark.parametrize("prefix", ["text_joint_layer.cls.predictions.", "cls.predictions.", "mlm_head."])
    def test_head_is_taken_and_the_rest_listed(self, source, tensors, save, prefix):
        head, leftovers = head_tensors(source.config, prefix), training_leftovers()
        model, report = convert(save({"model": {**tensors, **leftovers, **head}}))
        assert type(model) is R2D2ForPreTraining
        assert report.has_head
        assert report.unknown == []
        assert leftovers.keys() <= report.unused.keys()
        assert all("training" in report.unused[name] for name in leftovers)
        assert report.unused[f"{prefix}bias"] == "copy of the MLM head's decoder bias"
        same_weights(model, source)
        parameters = dict(model.mlm_head.named_parameters())
        for ours, theirs in {
            "dense.weight": "transform.dense.weight",
            "dense.bias": "transform.dense.bias",
            "layer_norm.weight": "transform.LayerNorm.weight",
            "layer_norm.bias": "transform.LayerNorm.bias",
            "decoder.weight": "decoder.weight",
            "decoder.bias": "decoder.bias",
        }.items():
            assert torch.equal(parameters[ours], head[prefix + theirs]), ours

    def test_untied_head_survives_save_and_load(self, source, tensors, save, tmp_path):
        head = head_tensors(source.config)
        model, _ = convert(save({"model": {**tensors, **head}}))
        assert not model.config.tie_word_embeddings
        model.save_pretrained(tmp_path / "saved")
        again = R2D2ForPreTraining.from_pretrained(tmp_path / "saved")
        assert torch.equal(again.mlm_head.decoder.weight, head["text_joint_layer.cls.predictions.decoder.weight"])
        same_weights(R2D2Model.from_pretrained(tmp_path / "saved"), source)

    @pytest.mark.parametrize("stored", [True, False])
    def test_tied_head(self, source, tensors, save, stored):
        head = head_tensors(source.config)
        name = "text_joint_layer.cls.predictions.decoder.weight"
        if stored:
            head[name] = tensors["text_encoder.embeddings.word_embeddings.weight"].clone()
        else:
            del head[name]
            del head["text_joint_layer.cls.predictions.decoder.bias"]
        model, _ = convert(save({"model": {**tensors, **head}}))
        assert model.config.tie_word_embeddings
        assert model.mlm_head.decoder.weight is model.text_model.embeddings.word_embeddings.weight
        assert torch.equal(model.mlm_head.decoder.bias, head["text_joint_layer.cls.predictions.bias"])
        same_weights(model, source)

    def test_head_can_be_left(self, source, tensors, save):
        head = head_tensors(source.config)
        model, report = convert(save({"model": {**tensors, **head}}), head=False)
        assert type(model) is R2D2Model
        assert head.keys() <= report.unused.keys()

    @pytest.mark.parametrize("damage", ["shape", "missing"])
    def test_head_that_does_not_fit(self, source, tensors, save, damage):
        head = head_tensors(source.config)
        name = "text_joint_layer.cls.predictions.transform.dense.weight"
        if damage == "shape":
            head[name] = torch.randn(3, 64)
        else:
            del head[name]
        path = save({"model": {**tensors, **head}})
        model, report = convert(path)
        assert type(model) is R2D2Model
        assert all("dense.weight is" in report.unused[name] for name in head)
        with pytest.raises(CheckpointError, match="MLM head: dense.weight is"):
            convert(path, head=True)

    def test_head_asked_for_and_absent(self, tensors, save):
        with pytest.raises(CheckpointError, match="MLM head: the checkpoint has none"):
            convert(save({"model": tensors}), head=True)

    def test_head_of_the_text_tower_alone(self, source, tensors, save):
        head = head_tensors(source.config, "text_encoder.cls.predictions.")
        model, report = convert(save({"model": {**tensors, **head}}))
        assert type(model) is R2D2Model
        assert head.keys() <= report.unused.keys()


class TestRefusals:
    def test_missing_tensor(self, tensors, save):
        for name in ("itm_head_i.bias", "temp", "img_joint_layer.encoder.layer.0.crossattention.self.key.weight"):
            left = {key: tensor for key, tensor in tensors.items() if key != name}
            with pytest.raises(CheckpointError, match=f"missing tensors: {name}"):
                convert(save({"model": left}))

    @pytest.mark.parametrize(
        "name",
        [
            "visual_encoder.embeddings.patch_embedding.weight",
            "text_encoder.embeddings.word_embeddings.weight",
            "vision_proj.weight",
        ],
    )
    def test_missing_tensor_that_tells_a_size(self, tensors, save, name):
        del tensors[name]
        with pytest.raises(CheckpointError, match=f"missing tensor: {name}"):
            convert(save({"model": tensors}))

    def test_missing_layer(self, tensors, save):
        left = {key: tensor for key, tensor in tensors.items() if "text_encoder.encoder.layer.0." not in key}
        with pytest.raises(CheckpointError, match=r"text_encoder\.encoder\.layer\.0"):
            convert(save({"model": left}))

    def test_misshapen_tensors(self, tensors, save):
        tensors["itm_head.weight"] = torch.zeros(3, 64)
        tensors["text_encoder.encoder.layer.1.output.dense.bias"] = torch.zeros(63)
        tensors["temp"] = torch.zeros(1)
        with pytest.raises(CheckpointError) as error:
            convert(save({"model": tensors}))
        for line in (
            "misshapen tensor: itm_head.weight is (3, 64), expected (2, 64)",
            "misshapen tensor: text_encoder.encoder.layer.1.output.dense.bias is (63,), expected (64,)",
            "misshapen tensor: temp is (1,), expected ()",
        ):
            assert line in str(error.value)

    def test_whole_numbers_are_no_weights(self, tensors, save):
        tensors["itm_head.bias"] = torch.zeros(2, dtype=torch.long)
        with pytest.raises(CheckpointError, match=r"itm_head\.bias is \(2,\) of int64"):
            convert(save({"model": tensors}))

    def test_unknown_tensors(self, source, tensors, save):
        tensors["text_encoder.adapter.weight"] = torch.zeros(2)
        tensors["visual_encoder.encoder.layers.0.mlp.fc3.weight"] = torch.zeros(2)
        path = save({"model": tensors})
        with pytest.raises(CheckpointError, match="unknown tensors: text_encoder.adapter.weight, visual_enc.*fc3"):
            convert(path)
        model, report = convert(path, allow_unknown=True)
        assert report.unknown == ["text_encoder.adapter.weight", "visual_encoder.encoder.layers.0.mlp.fc3.weight"]
        assert "text_encoder.adapter.weight" in str(report)
        same_weights(model, source)

    def test_heads_that_are_not_64_wide(self):
        with pytest.raises(CheckpointError, match="number of heads: give the configuration"):
            convert(golden.GOLDEN / "prd2_l14" / "checkpoint.pth")

    def test_other_image_size(self, tensors, save):
        config = wide_config()
        config.vision_config.image_size = 48
        with pytest.raises(CheckpointError, match=r"position_embedding.weight is \(10, 128\), expected \(37, 128\).*"):
            convert(save({"model": tensors}), config)

    def test_position_table_of_no_square(self, tensors, save):
        tensors["visual_encoder.embeddings.position_embedding.weight"] = torch.zeros(9, 128)
        with pytest.raises(CheckpointError, match="square number of patches"):
            convert(save({"model": tensors}))

    def test_ranker_expected_of_a_prd2(self, save):
        tensors = official_tensors(R2D2Model(wide_config(ranker=False)))
        with pytest.raises(CheckpointError, match="this is a PRD2"):
            convert(save({"model": tensors}), wide_config())

    def test_cross_encoders_of_different_sizes(self, tensors, save):
        layer = {name: tensor for name, tensor in tensors.items() if name.startswith("img_joint_layer.encoder.layer.0")}
        tensors.update({name.replace("layer.0", "layer.1"): tensor for name, tensor in layer.items()})
        with pytest.raises(CheckpointError, match="differ in size"):
            convert(save({"model": tensors}))

    def test_not_an_r2d2(self, save):
        with pytest.raises(CheckpointError, match=r"not an R2D2.*visual_encoder\.\* or text_encoder\.\*.*0\.weight"):
            convert(save({"model": nn.Sequential(nn.Linear(2, 2)).state_dict()}))
        with pytest.raises(CheckpointError, match="not an R2D2.*visual_encoder"):
            convert(save({"text_encoder.weight": torch.zeros(2)}), wide_config())

    @pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], 7, {"model": {}}, {}, torch.zeros(3)])
    def test_no_state_dict(self, save, content):
        with pytest.raises(CheckpointError, match="not an R2D2 checkpoint"):
            convert(save(content))

    def test_other_things_among_the_tensors(self, tensors, save):
        with pytest.raises(CheckpointError, match="not tensors: note"):
            convert(save({"model": {**tensors, "note": "text"}}))

    @pytest.mark.parametrize("new_format", [True, False])
    def test_objects_in_the_pickle_are_not_loaded(self, tensors, tmp_path, new_format):
        content = {"model": tensors, "args": types.SimpleNamespace(lr=1)}
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
        with pytest.raises(CheckpointError, match=r"types\.SimpleNamespace.*could run code"):
            convert(tmp_path / "x.pth")

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("content", [b"", b"\x80\x04K", b"not a checkpoint", b"PK\x03\x04 broken", b'{"a": 1}'])
    def test_no_checkpoint_at_all(self, tmp_path, content):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as a torch checkpoint"):
            convert(tmp_path / "x.pth")

    def test_truncated_file(self, tensors, save):
        path = save({"model": tensors})
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(CheckpointError, match="cannot be read as a torch checkpoint"):
            convert(path)

    def test_prefix_twice(self, tensors, save):
        with pytest.raises(CheckpointError, match="occur twice"):
            convert(save({**tensors, "module.temp": torch.tensor(0.1)}))

    def test_paths(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            convert(tmp_path / "absent.pth")
        with pytest.raises(CheckpointError, match="from_pretrained"):
            convert(tmp_path)
