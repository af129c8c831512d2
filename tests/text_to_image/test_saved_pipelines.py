"""Saved folders in fresh processes, by every documented way, with and without this package."""

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import BertModel
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from modeling_r2d2 import R2D2TextToImagePipeline
from tests.text_to_image.conftest import generator, tiny_pipeline

CALL = {"num_inference_steps": 2, "output_type": "pt"}
ROOT = Path(__file__).parents[2]

BLOCKER = """
    import importlib.abc, sys
    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "modeling_r2d2":
                raise ModuleNotFoundError("this process does not have modeling_r2d2", name=name)
    sys.meta_path.insert(0, Blocker())
"""
DRAW = """
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    call = {"rank_images": True, "num_images_per_prompt": 2} if pipe.ranker is not None else {}
    images = pipe("一只猫", generator=generator, num_inference_steps=2, output_type="pt", **call).images
    torch.save(images, sys.argv[2])
    print(type(pipe.text_encoder).__module__.split(".")[0], type(pipe).__module__.split(".")[0])
"""
WAYS = {
    "class": "from modeling_r2d2 import R2D2TextToImagePipeline\n"
    "    pipe = R2D2TextToImagePipeline.from_pretrained(folder)",
    "trust": BLOCKER.strip()
    + "\n    from diffusers import DiffusionPipeline\n"
    + "    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)",
    "custom_pipeline": BLOCKER.strip()
    + "\n    from diffusers import DiffusionPipeline\n"
    + "    pipe = DiffusionPipeline.from_pretrained(\n"
    + "        folder, custom_pipeline=folder + '/pipeline_r2d2.py', trust_remote_code=True)",
}


def fresh(way: str, folder: Path, tmp_path: Path, ok: bool = True) -> torch.Tensor | str:
    """Load and draw in a new process that runs elsewhere."""
    code = f"    import sys, torch\n    folder = sys.argv[1]\n    {WAYS[way]}\n{DRAW}"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    script = tmp_path / "draw.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    arguments = [sys.executable, str(script), str(folder), str(tmp_path / "images.pt")]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    if not ok:
        assert done.returncode != 0
        return done.stderr
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(tmp_path / "images.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Pixel pipeline: folder, and the picture it draws."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(folder)
    return folder, pipeline("一只猫", generator=generator(7), **CALL).images


@pytest.mark.parametrize("way", list(WAYS))
def test_a_fresh_process_draws_the_same(saved, tmp_path, way):
    folder, expected = saved
    torch.testing.assert_close(fresh(way, folder, tmp_path), expected, atol=1e-5, rtol=0)


def test_what_the_folder_holds(saved):
    folder, _ = saved
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == ["pipeline_r2d2", "R2D2TextToImagePipeline"]
    assert index["text_encoder"] == ["transformers", "BertModel"]
    assert index["tokenizer"] == ["transformers", "BertTokenizer"]
    assert index["vae"] == index["ranker"] == [None, None]
    source = ROOT / "modeling_r2d2" / "model" / "pipeline_text_to_image.py"
    assert (folder / "pipeline_r2d2.py").read_bytes() == source.read_bytes()
    _, info = BertModel.from_pretrained(folder / "text_encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_file_imports_nothing_of_this_package():
    source = (ROOT / "modeling_r2d2" / "model" / "pipeline_text_to_image.py").read_text(encoding="utf-8")
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert imports
    assert not [line for line in imports if line.startswith("from .") or "modeling_r2d2" in line]


def test_a_ranker_travels_with_its_code(tmp_path):
    pipeline = tiny_pipeline(ranker=True)
    pipeline.save_pretrained(tmp_path / "ranked")
    call = {"num_images_per_prompt": 2, "rank_images": True}
    expected = pipeline("一只猫", generator=generator(7), **call, **CALL).images
    assert expected.shape == (1, 3, 8, 8)
    torch.testing.assert_close(fresh("trust", tmp_path / "ranked", tmp_path), expected, atol=1e-5, rtol=0)


def test_a_ranker_saved_loaded_and_saved_again(tmp_path):
    """A class that came with a folder has its code there, and takes it along."""
    from diffusers import DiffusionPipeline

    before = os.umask(0o022)
    try:
        tiny_pipeline(ranker=True).save_pretrained(tmp_path / "one")
        for kind, source, target in ((R2D2TextToImagePipeline, "one", "two"), (DiffusionPipeline, "two", "three")):
            kind.from_pretrained(tmp_path / source, trust_remote_code=True).save_pretrained(tmp_path / target)
    finally:
        os.umask(before)
    code = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.py")}
    assert len(code) > 5
    for name in ("two", "three"):
        assert code <= {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.py")}
        again = R2D2TextToImagePipeline.from_pretrained(tmp_path / name, trust_remote_code=True)
        call = {"num_images_per_prompt": 2, "rank_images": True}
        assert again("一只猫", generator=generator(7), **call, **CALL).images.shape == (1, 3, 8, 8)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()} == {0o644}


def test_the_model_file_imports_all_that_travels_with_it():
    """Diffusers copies the files that a file itself imports, and not those that these import."""
    import modeling_r2d2

    folder = Path(modeling_r2d2.__file__).parent
    for name in ("modeling_r2d2.py", "processing_r2d2.py"):
        file = next(folder.parent.rglob(name))
        reached = {Path(path).stem for path in get_relative_import_files(file)}
        assert {f".{stem}" for stem in reached} <= {f".{each}" for each in get_relative_imports(file)}


def test_latent_space_and_saving_again(tmp_path):
    pipeline = tiny_pipeline(latent=True)
    expected = pipeline("山", generator=generator(), **CALL).images
    pipeline.save_pretrained(tmp_path / "one")
    loaded = R2D2TextToImagePipeline.from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "one")  # over itself
    loaded.save_pretrained(tmp_path / "two", safe_serialization=False)
    for name in ("one", "two"):
        again = R2D2TextToImagePipeline.from_pretrained(tmp_path / name)
        torch.testing.assert_close(again("山", generator=generator(), **CALL).images, expected, atol=1e-5, rtol=0)


def test_push_to_hub_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="hf upload"):
        tiny_pipeline().save_pretrained(tmp_path / "pushed", push_to_hub=True)
    assert not (tmp_path / "pushed").exists()


def test_without_trust_the_error_asks_for_it(saved, tmp_path):
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(saved[0])
