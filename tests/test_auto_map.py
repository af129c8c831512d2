"""`auto_map` of every class says what its folder holds, whatever folder its weights came from."""

import json
from pathlib import Path

import pytest

from modeling_r2d2 import (
    R2D2ForConditionalGeneration,
    R2D2ForImageClassification,
    R2D2ForImageTextMatching,
    R2D2ForImageTextRetrieval,
    R2D2ForPreTraining,
    R2D2Model,
    WukongModel,
)
from tests.helpers import tiny_image, tiny_processor
from tests.test_remote_code import fresh_process
from tests.tiny import tiny_config
from tests.wukong.tiny import tiny_wukong_config

BOTH = {"AutoModel", "AutoModelForZeroShotImageClassification"}
#: Class -> what loads from its folder.
HELD = {
    R2D2Model: BOTH,
    R2D2ForPreTraining: {*BOTH, "AutoModelForPreTraining"},
    R2D2ForImageTextRetrieval: {*BOTH, "AutoModelForPreTraining"},
    R2D2ForImageTextMatching: {*BOTH, "AutoModelForImageTextMatching"},
    R2D2ForImageClassification: {"AutoModelForImageClassification"},
    R2D2ForConditionalGeneration: {"AutoModelForImageTextToText"},
}

CHECK = """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    result = {}
    for place in sorted(folder.iterdir()):
        if not (place / "config.json").is_file():
            continue
        result[place.name] = {}
        for name, reference in json.loads((place / "config.json").read_text())["auto_map"].items():
            assert (place / f"{reference.split('.')[0]}.py").is_file(), (place, reference)
            kind = get_class_from_dynamic_module(reference, str(place))
            if name == "AutoConfig":
                kind.from_pretrained(place)
                continue
            model, info = kind.from_pretrained(place, output_loading_info=True)
            result[place.name][name] = [len(info[each]) for each in ("missing_keys", "mismatched_keys")]
    AutoProcessor.from_pretrained(folder / "R2D2Model", **trust)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Every class, its weights from a folder of the widest one, of which only some parts stay."""
    root = tmp_path_factory.mktemp("saved")
    R2D2ForPreTraining(tiny_config(max_text_length=16)).save_pretrained(root / "origin")
    for kind in HELD:
        model = kind.from_pretrained(root / "origin")
        model.save_pretrained(root / kind.__name__)
    prd2 = R2D2ForPreTraining(tiny_config(ranker=False))
    prd2.save_pretrained(root / "prd2")
    # there and back: a captioner's configuration into a whole model
    config = R2D2ForConditionalGeneration.from_pretrained(root / "R2D2ForConditionalGeneration").config
    R2D2Model(config).save_pretrained(root / "whole again")
    WukongModel(tiny_wukong_config()).save_pretrained(root / "wukong")
    tiny_processor().save_pretrained(root / "R2D2Model")
    return root


def auto_map(folder: Path) -> set[str]:
    return set(json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]) - {"AutoConfig"}


def test_what_a_folder_holds(folders):
    for kind, held in HELD.items():
        assert auto_map(folders / kind.__name__) == held, kind
    assert auto_map(folders / "whole again") == auto_map(folders / "wukong") == BOTH


def test_every_entry_loads_without_this_package(folders, tmp_path):
    """With all of its weights, in one fresh process; no entry names a file that is not there."""

    tiny_image().save(folders / "picture.png")
    result = fresh_process(folders, CHECK, tmp_path)
    assert len(result) == len(HELD) + 4
    for name, entries in result.items():
        assert entries, name
        for entry, wrong in entries.items():
            assert wrong == [0, 0], (name, entry)
