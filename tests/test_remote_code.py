"""Saved folders in fresh processes that do not have this package, by `trust_remote_code=True`.

The fresh process runs elsewhere, in isolated mode, and refuses to import `modeling_r2d2` from anywhere but the
modules that transformers copies out of the saved folder.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)

from modeling_r2d2 import R2D2ForPreTraining, R2D2Model, R2D2Processor
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.tiny import tiny_config

TEXTS = ["一只猫", "两条红色的鱼在水"]
LABELS = ["猫", "小船"]

BLOCKER = """
    import importlib.abc, json, sys
    from pathlib import Path

    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "modeling_r2d2":
                raise ModuleNotFoundError("this process does not have modeling_r2d2", name=name)

    sys.meta_path.insert(0, Blocker())
    folder = Path(sys.argv[1])
    import torch
    from PIL import Image
    from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor
    from transformers import AutoModelForPreTraining, pipeline
    trust = {"trust_remote_code": True}
    TEXTS, LABELS = json.loads(sys.argv[2])
    picture = Image.open(folder / "picture.png")
"""

LOGITS = """
    def logits(model, processor):
        with torch.no_grad():
            inputs = processor(images=[picture], text=TEXTS, return_tensors="pt")
            return model.eval()(**inputs).logits_per_image.tolist()
"""


def fresh_process(folder: Path, code: str, tmp_path: Path) -> dict:
    """Run `code` without the package; what it assigns to `result` comes back through JSON."""
    script = textwrap.dedent(BLOCKER) + textwrap.dedent(LOGITS) + textwrap.dedent(code) + "\nprint(json.dumps(result))"
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(folder), json.dumps([TEXTS, LABELS])],
        capture_output=True,
        text=True,
        cwd=tmp_path / "elsewhere",
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def save(folder: Path, model) -> Path:
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    tiny_image().save(folder / "picture.png")
    return folder


def logits(model, processor) -> list:
    inputs = processor(images=[tiny_image()], text=TEXTS, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image.tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"), tiny_model())


def test_everything_in_a_fresh_process(folder, tmp_path):
    """AutoConfig, both AutoModels, AutoProcessor, the pipeline; then saved again and loaded again."""
    result = fresh_process(
        folder,
        """
        config = AutoConfig.from_pretrained(folder, **trust)
        model = AutoModel.from_pretrained(folder, **trust)
        zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(folder, **trust)
        processor = AutoProcessor.from_pretrained(folder, **trust)
        classify = pipeline("zero-shot-image-classification", model=str(folder), **trust)
        scores = classify(picture, candidate_labels=LABELS, hypothesis_template="一张{}的图片")
        inputs = processor(images=[picture] * 2, text=TEXTS, return_tensors="pt")
        with torch.no_grad():
            match = model.eval().match(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
        try:
            classify(picture, candidate_labels=["狗" * 99], hypothesis_template="{}")
            too_long = "no error"
        except ValueError as error:
            too_long = str(error)

        again = Path("again")
        model.save_pretrained(again)
        processor.save_pretrained(again)
        second = AutoModel.from_pretrained(again, **trust)
        second_processor = AutoProcessor.from_pretrained(again, **trust)
        second_scores = pipeline("zero-shot-image-classification", model=str(again), **trust)(
            picture, candidate_labels=LABELS, hypothesis_template="一张{}的图片"
        )
        result = {
            "classes": [type(x).__name__ for x in (config, model, zero_shot, processor, second_processor)],
            "modules": sorted({type(x).__module__.split(".")[0] for x in (config, model, processor, second)}),
            "logits": [logits(m, p) for m, p in (
                (model, processor), (zero_shot, processor), (second, second_processor)
            )],
            "scores": [scores, second_scores],
            "match": match.match_probability.tolist(),
            "too_long": too_long,
            "installed": "modeling_r2d2" in sys.modules,
        }
        """,
        tmp_path,
    )
    assert result["classes"] == ["R2D2Config", "R2D2Model", "R2D2Model", "R2D2Processor", "R2D2Processor"]
    assert result["modules"] == ["transformers_modules"]
    assert not result["installed"]
    model, processor = R2D2Model.from_pretrained(folder).eval(), R2D2Processor.from_pretrained(folder)
    expected = torch.tensor(logits(model, processor))
    for other in result["logits"]:
        torch.testing.assert_close(torch.tensor(other), expected)
    own = pipeline("zero-shot-image-classification", model=str(folder))
    own_scores = own(tiny_image(), candidate_labels=LABELS, hypothesis_template="一张{}的图片")
    for other in result["scores"]:
        assert {s["label"]: s["score"] for s in other} == pytest.approx({s["label"]: s["score"] for s in own_scores})
    inputs = processor(images=[tiny_image()] * 2, text=TEXTS, return_tensors="pt")
    with torch.no_grad():
        match = model.match(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
    assert result["match"] == pytest.approx(match.match_probability.tolist(), abs=1e-6)
    assert "101 tokens exceeds the 40 positions" in result["too_long"]
    # and what the fresh process saved loads here
    back = R2D2Model.from_pretrained(tmp_path / "elsewhere" / "again").eval()
    torch.testing.assert_close(torch.tensor(logits(back, processor)), expected)


def test_pre_training_model_in_a_fresh_process(tmp_path):
    """A pre-training checkpoint loads as AutoModel (without its head) and as AutoModelForPreTraining."""
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config(max_text_length=16))
    folder = save(tmp_path / "saved", model)
    result = fresh_process(
        folder,
        """
        processor = AutoProcessor.from_pretrained(folder, **trust)
        plain, info = AutoModel.from_pretrained(folder, output_loading_info=True, **trust)
        head = AutoModelForPreTraining.from_pretrained(folder, **trust).eval()
        inputs = processor(images=[picture] * 2, text=TEXTS, return_tensors="pt")
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[:, 1] = inputs["input_ids"][:, 1]
        with torch.no_grad():
            loss = head(**inputs, masked_input_ids=inputs["input_ids"], mlm_labels=labels).loss_mlm.item()
        head.save_pretrained("head")
        processor.save_pretrained("head")
        result = {
            "classes": [type(plain).__name__, type(head).__name__,
                        type(AutoModel.from_pretrained("head", **trust)).__name__,
                        type(AutoModelForPreTraining.from_pretrained("head", **trust)).__name__],
            "info": {k: sorted(info[k]) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")},
            "logits": logits(plain, processor),
            "scores": pipeline("zero-shot-image-classification", model=str(folder), **trust)(
                picture, candidate_labels=LABELS),
            "loss": loss,
        }
        """,
        tmp_path,
    )
    assert result["classes"] == ["R2D2Model", "R2D2ForPreTraining"] * 2
    assert not any(result["info"].values()), result["info"]
    own = R2D2Model.from_pretrained(folder)
    processor = tiny_processor()
    torch.testing.assert_close(torch.tensor(result["logits"]), torch.tensor(logits(own, processor)))
    inputs = processor(images=[tiny_image()] * 2, text=TEXTS, return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, 1] = inputs["input_ids"][:, 1]
    with torch.no_grad():
        loss = model.eval()(**inputs, masked_input_ids=inputs["input_ids"], mlm_labels=labels).loss_mlm
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert len(result["scores"]) == 2


def test_other_kinds_in_a_fresh_process(tmp_path):
    """PRD2 (no ranker), and another image tower."""
    kinds = {"prd2": tiny_model(ranker=False), "resnet": tiny_model("resnet")}
    for name, model in kinds.items():
        save(tmp_path / "saved" / name, model)
    tiny_image().save(tmp_path / "saved" / "picture.png")
    result = fresh_process(
        tmp_path / "saved",
        """
        result = {}
        for name in ("prd2", "resnet"):
            model = AutoModel.from_pretrained(folder / name, **trust)
            processor = AutoProcessor.from_pretrained(folder / name, **trust)
            classify = pipeline("zero-shot-image-classification", model=str(folder / name), **trust)
            result[name] = {
                "logits": logits(model, processor),
                "can_rank": model.can_rank,
                "tower": type(model.vision_model).__name__,
                "scores": classify(picture, candidate_labels=LABELS),
            }
        """,
        tmp_path,
    )
    for name, model in kinds.items():
        there = result[name]
        assert there["can_rank"] is model.can_rank
        assert there["tower"] == type(model.vision_model).__name__
        torch.testing.assert_close(torch.tensor(there["logits"]), torch.tensor(logits(model, tiny_processor())))
        assert len(there["scores"]) == 2


def test_saved_pipelines_travel(folder, tmp_path):
    """`pipeline.save_pretrained` takes our pipelines' own code along."""
    own = {}
    for task in ("r2d2-zero-shot-image-classification", "image-text-matching"):
        import modeling_r2d2  # noqa: F401 (registers the tasks)

        own[task] = pipeline(task, model=str(folder))
        own[task].save_pretrained(tmp_path / task)
    tiny_image().save(tmp_path / "picture.png")
    result = fresh_process(
        tmp_path,
        """
        task = "r2d2-zero-shot-image-classification"
        classify = pipeline(task, model=str(folder / task), **trust)
        task = "image-text-matching"
        match = pipeline(task, model=str(folder / task), **trust)
        result = {
            "scores": classify(picture, LABELS + ["狗" * 99], use_ranker=True),
            "match": match(image=picture, text=TEXTS),
        }
        """,
        tmp_path,
    )
    classify, match = own.values()
    expected = classify(tiny_image(), [*LABELS, "狗" * 99], use_ranker=True)
    assert [s["label"] for s in result["scores"]] == [s["label"] for s in expected]
    assert [s["score"] for s in result["scores"]] == pytest.approx([s["score"] for s in expected], abs=1e-6)
    for there, here in zip(result["match"], match(image=tiny_image(), text=TEXTS), strict=True):
        assert there == pytest.approx(here, abs=1e-6)


class TestWithThePackage:
    """Imported, the package needs no trust, and its classes win over the copies in the folder."""

    @pytest.mark.parametrize("trust", [None, True])
    def test_auto_classes(self, folder, trust):
        import modeling_r2d2

        trust = {} if trust is None else {"trust_remote_code": trust}
        assert type(AutoConfig.from_pretrained(folder, **trust)) is modeling_r2d2.R2D2Config
        for auto in (AutoModel, AutoModelForZeroShotImageClassification):
            assert type(auto.from_pretrained(folder, **trust)) is R2D2Model
        assert type(AutoProcessor.from_pretrained(folder, **trust)) is R2D2Processor
        classify = pipeline("zero-shot-image-classification", model=str(folder), **trust)
        assert type(classify.model) is R2D2Model

    def test_pre_training_class(self, tmp_path):
        model = R2D2ForPreTraining(tiny_config())
        model.save_pretrained(tmp_path)
        assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is R2D2ForPreTraining
        plain, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(plain) is R2D2Model
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]

    def test_from_config(self):
        assert type(AutoModel.from_config(tiny_config())) is R2D2Model


def test_saved_files_name_nothing_of_this_machine(folder):
    here = str(Path(__file__).parents[1])
    for path in folder.iterdir():
        if path.suffix in (".json", ".py"):
            assert here not in path.read_text(encoding="utf-8"), path.name
    auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForZeroShotImageClassification"} <= set(auto_map)
