"""`r2d2 pretrain --recipe ranker`, end to end on a converted Chinese-CLIP: the folder loads, searches, evaluates."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Model
from modeling_r2d2.cli import app
from modeling_r2d2.inference.loading import load_whole
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from tests.cli.test_cli import data  # noqa: F401 (a fixture)
from tests.integrations.conversion.dual_encoder_sources import save

runner = CliRunner()


def ranker(model, output, data, *more: str) -> list[str]:  # noqa: F811
    return [
        *("pretrain", "--recipe", "ranker", "--model", str(model), "--data", str(data), "--output", str(output)),
        *("--steps", "3", "--batch-size", "4", "--workers", "0", "--ranker-layers", "1", "--log-every", "1", *more),
    ]


def line_of(result) -> str:
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize("converted", [True, False])
def test_scenes_on_a_chinese_clip(tmp_path, converted):
    source = save(tmp_path / "source", "chinese_clip")
    model = tmp_path / "converted" if converted else source
    if converted:
        convert_dual_encoder_to_folder(source, model)
    out = tmp_path / "out"
    line = line_of(runner.invoke(app, ranker(model, out, "scenes:google,twitter/validation"), catch_exceptions=False))
    assert "steps of FGR on frozen towers, with negatives of the whole set" in line
    towers, trained = load_whole(R2D2Model, model), load_whole(R2D2Model, out)
    assert trained.can_rank
    assert trained.config.two_stage_score == "fused"
    found = trained.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in towers.state_dict().items())
    assert json.loads((out / "pretraining.json").read_text(encoding="utf-8"))["objectives"].startswith("FGR")
    if not converted:
        return
    again = ranker(out, tmp_path / "again", "emoji:samsung", "--mask-ratio", "0.3")
    again.remove("--ranker-layers")
    again.remove("1")
    assert "FGR + MLM on frozen towers" in line_of(runner.invoke(app, again, catch_exceptions=False))


def test_verbs_on_what_it_writes(data):  # noqa: F811
    source = save(data / "source", "chinese_clip")
    line_of(runner.invoke(app, ranker(source, data / "out", data / "pairs.jsonl"), catch_exceptions=False))
    line_of(runner.invoke(app, ["index", str(data), "--model", str(data / "out"), "--output", str(data / "index")]))
    assert "0.png" in line_of(runner.invoke(app, ["search", str(data / "index"), "一只小狗", "--top-k", "8"]))
    evaluated = ["evaluate", "--task", "retrieval", "--model", str(data / "out"), "--data", str(data / "pairs.jsonl")]
    line_of(runner.invoke(app, [*evaluated, "--two-stage", "--output", str(data / "evaluation")]))
    assert '"two_stage.' in (data / "evaluation" / "retrieval-pairs-jsonl.json").read_text(encoding="utf-8")


def rewritten(source, target, **config):
    """A copy of a source whose config.json says something else."""
    shutil.copytree(source, target)
    held = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**held, **config}), encoding="utf-8")
    return target


def test_sources_that_cannot_be_taken_are_refused_in_a_line(data):  # noqa: F811
    source = save(data / "source", "chinese_clip")
    text = json.loads((source / "config.json").read_text(encoding="utf-8"))["text_config"]
    lacking = shutil.copytree(source, data / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    tensors.pop("text_projection.weight")
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    vocabulary = rewritten(source, data / "vocabulary", text_config={**text, "vocab_size": 70})
    wider = load_file(vocabulary / "model.safetensors")
    name = next(each for each in wider if each.endswith("word_embeddings.weight"))
    wider[name] = torch.zeros(70, wider[name].shape[1])
    save_file(wider, vocabulary / "model.safetensors", metadata={"format": "pt"})
    own_code = {"AutoModel": "modeling_other.OtherModel"}
    refusals = {
        lacking: "lacks 1 weights of a ChineseCLIPModel, such as text_projection.weight",
        vocabulary: "its tokenizer has 59 entries, and its text tower 70 embeddings: they do not belong together",
        rewritten(source, data / "unknown", model_type="other_clip"): "other_clip",
        rewritten(source, data / "code", model_type="other_clip", auto_map=own_code): "other_clip",
        rewritten(source, data / "naflex", model_type="siglip2"): "siglip2",
    }
    for model, message in refusals.items():
        result = runner.invoke(app, ranker(model, data / "out", data / "pairs.jsonl"))
        assert isinstance(result.exception, ValueError), (model, result.output)
        found = str(result.exception)
        assert message in found
        assert str(model) in found
        assert "\n" not in found
        assert not (data / "out" / "model.safetensors").exists()
    (data / "one.jsonl").write_text((data / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    result = runner.invoke(app, ranker(source, data / "out", data / "one.jsonl"))
    assert "1 pictures with 1 texts have none" in str(result.exception)


def test_long_texts_are_cut_with_a_warning(data, caplog):  # noqa: F811
    source = save(data / "source", "chinese_clip")
    rows = [{"image": f"{n}.png", "text": "一只猫在草地上跑" * (5 + n)} for n in range(8)]
    (data / "long.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    line_of(runner.invoke(app, ranker(source, data / "out", data / "long.jsonl"), catch_exceptions=False))
    assert "truncated to 40" in caplog.text
