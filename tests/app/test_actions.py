"""What the buttons do, against the model asked directly."""

import math
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageChops

from modeling_r2d2.app import AppModels, actions
from modeling_r2d2.app.actions import InputError
from modeling_r2d2.search import Calibration, R2D2Retriever
from tests.app.conftest import NAMES, Place, save_model
from tests.helpers import tiny_image
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

CALIBRATION = Calibration("platt", slope=0.5, intercept=-1.0, true_share=0.2, pairs=10, held_out={})


def direct(models: AppModels, images: list[Image.Image], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Match probability and cosine (I, T), every pair through the whole model."""
    model, processor = models.retriever.model, models.retriever.processor
    probabilities, cosines = [], []
    for image in images:
        inputs = processor(images=[image] * len(texts), text=texts, return_tensors="pt")
        with torch.no_grad():
            probabilities.append(
                model.match(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).match_probability
            )
            output = model(inputs["input_ids"], inputs["pixel_values"][:1], inputs["attention_mask"])
        cosines.append((output.image_embeds @ output.text_embeds.t())[0])
    return torch.stack(probabilities), torch.stack(cosines)


def both_stages(models: AppModels, probability: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    """The fused score, written out."""
    return cosine / models.retriever.model.temperature.item() + torch.log(probability / (1 - probability))


@pytest.fixture
def images(place):
    return [Image.open(place.image(name)).convert("RGB") for name in NAMES]


def names_of(found: actions.Found) -> list[str]:
    return [re.match(r"\d+ · (.*)\.png", tile.caption)[1] for tile in found.tiles]


def test_search_by_text_is_ranked_by_both_stages(models, images):
    probability, cosine = direct(models, images, ["黄鸟"])
    scores = both_stages(models, probability, cosine)[:, 0]
    order = scores.argsort(descending=True).tolist()
    found = actions.search_by_text(models, " 黄鸟 ", top_k=5, candidates=128, minimum=0)
    assert names_of(found) == [NAMES[i] for i in order[:5]]
    assert found.notes == []
    best = order[0]
    lines = [f"匹配 {100 * probability[best, 0]:.1f}%", f"余弦 {cosine[best, 0]:.2f} · 得分 {scores[best]:.2f}"]
    assert found.tiles[0].caption.splitlines() == [f"1 · {NAMES[best]}.png", *lines]
    assert found.tiles[0].image.tobytes() == images[best].tobytes()


def test_score_as_the_page_was_opened_with(models, images):
    probability, cosine = direct(models, images, ["黄鸟"])
    model, processor, index = (getattr(models.retriever, name) for name in ("model", "processor", "index"))
    opened = replace(models, retriever=R2D2Retriever(model, processor, index, score="published"))
    found = actions.search_by_text(opened, "黄鸟", top_k=5, candidates=128, minimum=0)
    order = (probability + cosine)[:, 0].argsort(descending=True).tolist()
    assert names_of(found) == [NAMES[i] for i in order[:5]]


def test_minimum_and_candidates(models, images):
    probability, cosine = direct(models, images, ["黄鸟"])
    limit = float(probability[:, 0].sort().values[3:5].mean())  # between two of them
    found = actions.search_by_text(models, "黄鸟", top_k=60, candidates=128, minimum=limit)
    assert set(names_of(found)) == {name for name, p in zip(NAMES, probability[:, 0], strict=True) if p >= limit}
    by_cosine = actions.search_by_text(models, "黄鸟", top_k=8, candidates=0, minimum=0)
    assert names_of(by_cosine) == [NAMES[i] for i in cosine[:, 0].argsort(descending=True)]
    assert all("匹配" not in tile.caption for tile in by_cosine.tiles)
    two = actions.search_by_text(models, "黄鸟", top_k=8, candidates=2, minimum=0)
    assert ["匹配" in tile.caption for tile in two.tiles] == [True] * 2 + [False] * 6
    with pytest.raises(InputError, match="候选"):
        actions.search_by_text(models, "黄鸟", top_k=8, candidates=0, minimum=0.5)


def test_search_by_image_finds_it(models, place):
    found = actions.search_by_image(models, place.image("红花"), top_k=3)
    assert names_of(found)[0] == "红花"
    assert "余弦 1.00" in found.tiles[0].caption
    assert "匹配" not in found.tiles[0].caption


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_match(models, place, images, calibration):
    retriever = R2D2Retriever(models.retriever.model, models.retriever.processor, calibration=calibration)
    rows, notes = actions.match(replace(models, retriever=retriever), place.image("马"), "马\n一只猫\n\n 马 \n白狗")
    texts = ["马", "一只猫", "白狗"]
    probability, cosine = (values[0].tolist() for values in direct(models, [images[1]], texts))
    if calibration is not None:
        probability = [1 / (1 + math.exp(1 - 0.5 * math.log(p / (1 - p)))) for p in probability]
    expected = sorted(zip(texts, probability, cosine, strict=True), key=lambda row: -row[1])
    assert [row.text for row in rows] == [text for text, _, _ in expected]
    assert [row.probability for row in rows] == pytest.approx([p for _, p, _ in expected], abs=1e-5)
    assert [row.cosine for row in rows] == pytest.approx([c for _, _, c in expected], abs=1e-5)
    assert notes == []


def test_classify(models, place, images):
    labels = ["猫", "船", "山"]
    prompts = [f"一张{label}的图片" for label in labels]
    probability, cosine = (values[0] for values in direct(models, [images[2]], prompts))
    softmax = (cosine / models.retriever.model.bounded_temperature()).softmax(dim=0)
    call = (place.image("小船"), "猫，船、山,猫", "一张{}的图片")
    for use_ranker, expected in ((False, softmax), (True, probability)):
        rows, _ = actions.classify(models, *call, use_ranker=use_ranker)
        order = expected.argsort(descending=True).tolist()
        assert [row.text for row in rows] == [labels[i] for i in order]
        assert [row.probability for row in rows] == pytest.approx(expected[order].tolist(), abs=1e-5)
    retriever = R2D2Retriever(models.retriever.model, models.retriever.processor, calibration=CALIBRATION)
    rows, _ = actions.classify(replace(models, retriever=retriever), *call, use_ranker=True)
    wanted = CALIBRATION(probability).sort(descending=True).values.tolist()
    assert [row.probability for row in rows] == pytest.approx(wanted, abs=1e-5)


def test_braces_of_a_visitor_are_text(models, place):
    rows, _ = actions.classify(models, place.image("马"), "{0}，马{}", "{}{x}")
    assert {row.text for row in rows} == {"{0}", "马{}"}


@pytest.mark.parametrize(
    ("action", "arguments", "message"),
    [
        ("search_by_text", ("  \n", 5, 128, 0), "请先输入文字 / enter a text first"),
        ("search_by_text", (None, 5, 128, 0), "请先输入文字"),
        ("search_by_text", ("猫" * 501, 5, 128, 0), "500"),
        ("search_by_text", ("猫", 61, 128, 0), "top_k .* 1 .* 60"),
        ("search_by_text", ("猫", "5", 128, 0), "top_k"),
        ("search_by_text", ("猫", 5, 1e9, 0), "candidates"),
        ("search_by_text", ("猫", 5, 128, float("nan")), "min_match_probability"),
        ("search_by_image", (None, 5), "请先选择一张图片 / choose a picture first"),
        ("match", (None, "猫"), "choose a picture"),
        ("match", ("{picture}", " \n "), "请至少输入一条文字 / enter at least one text"),
        ("match", ("{picture}", "\n".join(map(str, range(101)))), "100"),
        ("classify", ("{picture}", "，，", "{}"), "at least one"),
        ("classify", ("{picture}", "猫", "一张图片"), "needs {} where the label goes"),
        ("classify", ("{picture}", "猫", ""), "enter a text"),
    ],
)
def test_wrong_input_is_named(models, place, action, arguments, message):
    arguments = [place.image("马") if value == "{picture}" else value for value in arguments]
    with pytest.raises(InputError, match=message):
        getattr(actions, action)(models, *arguments)


def test_images_that_cannot_be_read(models, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="无法读取这张图片 / this picture cannot be read") as raised:
        actions.checked_image(models, str(broken))
    assert str(tmp_path) not in str(raised.value)  # a visitor need not know where uploads lie


def test_an_uploaded_photo_is_turned_upright(models, tmp_path, monkeypatch):
    image = tiny_image(3, width=40, height=20)
    exif = Image.Exif()
    exif[274] = 6  # taken with the camera on its side
    image.save(tmp_path / "photo.png", exif=exif)
    upright = actions.checked_image(models, str(tmp_path / "photo.png"))
    assert upright.size == (20, 40)
    assert upright.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    monkeypatch.setattr(models.retriever.processor.image_processor, "exif_transpose", False, raising=False)
    assert actions.checked_image(models, str(tmp_path / "photo.png")).tobytes() == image.tobytes()


def test_what_the_model_does_not_read_is_reported(models):
    found = actions.search_by_text(models, "一只龘龘猫 fox " + "马" * 20, top_k=1, candidates=8, minimum=0)
    assert found.notes[0] == "模型不认识 / the model does not know: 龘 fox"
    assert found.notes[1] == "1 条文字被截到 16 个词元 / cut to the model's 16 tokens: 1"
    beyond = actions.search_by_text(models, "马" * 20 + "龘", top_k=1, candidates=8, minimum=0)
    assert len(beyond.notes) == 1  # what was cut off is not looked at


def test_images_that_vanished_or_changed(tmp_path):
    place = Place(tmp_path)
    save_model(place.model)
    place.images.mkdir()
    for seed, name in enumerate(NAMES[:3]):
        tiny_image(seed).save(place.image(name))
    R2D2Retriever.build(place.images, place.model, place.index)
    models = AppModels.open(index=place.index)
    (place.images / "马.png").unlink()
    tiny_image(9, width=60).save(place.image("小船"))
    found = actions.search_by_image(models, place.image("一只猫"), top_k=3)
    captions = {tile.caption.splitlines()[0].split(" · ")[1] for tile in found.tiles}
    assert captions == {"一只猫.png", "马.png (读不到 unreadable)", "小船.png (已改动 changed)"}
    assert [re.sub(r"\D", "", note) for note in found.notes] == ["11", "11"]


def test_a_model_without_a_ranker(place, tmp_path):
    model = save_model(tmp_path / "prd2", ranker=False)
    R2D2Retriever.build(place.images, model, tmp_path / "index")
    models = AppModels.open(index=tmp_path / "index")
    assert not models.can_rank
    found = actions.search_by_text(models, "马", top_k=2, candidates=128, minimum=0.9)
    assert len(found.tiles) == 2
    for call in (
        lambda: actions.match(models, place.image("马"), "马"),
        lambda: actions.classify(models, place.image("马"), "马", "{}", use_ranker=True),
    ):
        with pytest.raises(InputError, match="pre-ranking only"):
            call()


def test_a_model_that_compares_token_by_token(place, tmp_path):
    tiny_wukong("filip").save_pretrained(tmp_path / "filip")
    tiny_wukong_processor().save_pretrained(tmp_path / "filip")
    R2D2Retriever.build(place.images, tmp_path / "filip", tmp_path / "index")
    models = AppModels.open(index=tmp_path / "index")
    assert len(actions.search_by_text(models, "马", top_k=2, candidates=128, minimum=0).tiles) == 2
    with pytest.raises(InputError, match="not pictures with pictures"):
        actions.search_by_image(models, place.image("马"), top_k=2)


def test_draw(drawing_place):
    models = AppModels.open(drawing_place.model, text_to_image=drawing_place.text_to_image)
    assert not models.can_search
    assert models.text_to_image.ranker is None  # the page's model judges
    steps = []
    found = actions.draw(models, "一只猫", 3, 2, 2.0, 5, lambda step, of: steps.append((step, of)))
    assert steps == [(1, 2), (2, 2)]
    assert {tile.image.size for tile in found.tiles} == {(256, 256)}
    by_seed = {tile.caption.splitlines()[0]: tile.image for tile in found.tiles}
    assert set(by_seed) == {"种子 seed 5", "种子 seed 6", "种子 seed 7"}
    alone = actions.draw(models, "一只猫", 1, 2, 2.0, 6).tiles[0].image
    extrema = ImageChops.difference(alone, by_seed["种子 seed 6"]).getextrema()
    assert max(highest for _, highest in extrema) <= 1  # a batch of one rounds otherwise than one of three
    small = {caption: image.resize((8, 8), Image.Resampling.NEAREST) for caption, image in by_seed.items()}
    probability, cosine = direct(models, list(small.values()), ["一只猫"])
    order = both_stages(models, probability, cosine)[:, 0].argsort(descending=True).tolist()
    assert [tile.caption.splitlines()[0] for tile in found.tiles] == [list(small)[i] for i in order]
    assert f"匹配 {100 * probability[order[0], 0]:.1f}%" in found.tiles[0].caption
    with pytest.raises(InputError, match="steps"):
        actions.draw(models, "一只猫", 1, 0, 2.0, 0)


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.0, "0.0%"), (0.0004, "<0.1%"), (0.123, "12.3%"), (0.9996, ">99.9%"), (1.0, "100.0%")],
)
def test_percent(probability, shown):
    assert actions.percent(probability) == shown
