"""What the buttons of the page do, without the page: input checked, the Python interfaces called, rows and tiles back.

Everything that a visitor can do wrong raises `InputError`, whose message is shown on the page, Chinese first.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from ..model.pipeline_inputs import text_limit, unknown_parts
from ..processing.files.images import ImageReadError, opening_of
from ..processing.files.printable import printable
from ..search import SearchHit
from .decoding import ImageDecoder
from .models import AppModels

MAX_CHARACTERS, MAX_TEXTS = 500, 100
MAX_TOP_K, MAX_CANDIDATES = 60, 512
MAX_IMAGES, MAX_STEPS = 8, 100
_TILE = 384

#: Decodes what visitors upload, in processes of its own.
DECODER = ImageDecoder(max_pixels=50_000_000, seconds=10)


class InputError(ValueError):
    """What a visitor has to change, in both languages."""

    def __init__(self, chinese: str, english: str):
        super().__init__(f"{chinese} / {english}")


@dataclass(frozen=True)
class Tile:
    """A picture and the lines below it."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Row:
    """A text with its probability, in 0..1, and its cosine where that is shown too."""

    text: str
    probability: float
    cosine: float | None = None


@dataclass(frozen=True)
class Found:
    """What a search gives.

    Args:
        tiles: best first.
        notes: what the visitor should know about the query or the hits.
    """

    tiles: list[Tile]
    notes: list[str]


# -- input --------------------------------------------------------------------------------------


def checked_text(text: object) -> str:
    """A text without the space around it.

    Raises:
        InputError: empty, or longer than `MAX_CHARACTERS`.
    """
    text = text.strip() if isinstance(text, str) else ""
    if not text:
        raise InputError("请先输入文字", "enter a text first")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"文字太长：最多 {MAX_CHARACTERS} 个字符", f"use at most {MAX_CHARACTERS} characters")
    return text


def checked_lines(text: object, separators: str = "\n") -> list[str]:
    """Distinct texts, each a line or, with other `separators`, a part.

    Raises:
        InputError: none, more than `MAX_TEXTS`, or one that is too long.
    """
    parts = re.split(f"[{separators}]", text) if isinstance(text, str) else []
    parts = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not parts:
        raise InputError("请至少输入一条文字", "enter at least one text")
    if len(parts) > MAX_TEXTS:
        raise InputError(f"最多 {MAX_TEXTS} 条文字", f"at most {MAX_TEXTS} texts")
    return [checked_text(part) for part in parts]


def checked_image(models: AppModels, image: str | PathLike | Image.Image | None) -> Image.Image:
    """An uploaded picture, RGB, upright unless the model takes pictures as they are stored; a picture that is decoded
    already stays as it is.

    Raises:
        InputError: none was chosen; or it cannot be read, has more than 50 megapixels, or takes longer than 10 s.
    """
    if image is None or image == "":
        raise InputError("请先选择一张图片", "choose a picture first")
    if isinstance(image, Image.Image):
        return image
    try:
        return DECODER.open(image, name="upload", **opening_of(models.retriever.processor))
    except ImageReadError as error:
        reason = str(error).removeprefix("upload").lstrip(": ")
        raise InputError("无法读取这张图片", f"this picture cannot be read: {reason}") from error


def checked_number(value: object, low: float, high: float, name: str) -> float:
    """A number of a slider; its bounds hold for other callers of the page, too.

    Raises:
        InputError: no number, or outside of low..high.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name} 应在 {low} 到 {high} 之间", f"{name} must be a number from {low} to {high}")
    return value


def reading_notes(tokenizer: PreTrainedTokenizerBase, limit: int, texts: list[str]) -> list[str]:
    """What of the texts a model does not read: tokens beyond its limit, characters beyond its vocabulary."""
    unknown = unknown_parts(tokenizer, texts, limit)
    cut = sum(len(ids) > limit for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"])
    notes = []
    if unknown:
        shown = " ".join(unknown[:10])
        notes.append(f"模型不认识 / the model does not know: {shown}")
    if cut:
        notes.append(f"{cut} 条文字被截到 {limit} 个词元 / cut to the model's {limit} tokens: {cut}")
    return notes


def _notes(models: AppModels, texts: list[str]) -> list[str]:
    tokenizer = models.retriever.processor.tokenizer
    return reading_notes(tokenizer, text_limit(tokenizer, models.retriever.model.config), texts)


def _require_ranker(models: AppModels) -> None:
    if not models.can_rank:
        raise InputError("这个模型只做预排序，没有匹配概率", "this model is pre-ranking only: no match probability")


# -- actions ------------------------------------------------------------------------------------


def search_by_text(models: AppModels, text: str, top_k: float, candidates: float, minimum: float) -> Found:
    """Pictures for a text.

    Args:
        top_k: hits.
        candidates: how many of the best by cosine are ranked.
        minimum: match probability below which a hit is left out; 0: none is. Without a ranker both are not looked at.

    Raises:
        InputError: see above; or a minimum without candidates.
    """
    text = checked_text(text)
    top_k = int(checked_number(top_k, 1, MAX_TOP_K, "top_k"))
    if not models.can_rank:
        candidates = minimum = 0
    candidates = int(checked_number(candidates, 0, MAX_CANDIDATES, "candidates"))
    minimum = checked_number(minimum, 0, 1, "min_match_probability")
    if minimum > 0 and candidates == 0:
        raise InputError("没有候选就没有匹配概率：请增加候选数", "without candidates there is no match probability")
    (result,) = models.retriever.search(
        text, top_k=top_k, candidates=candidates, min_match_probability=minimum if minimum > 0 else None
    )
    return _found(result.hits, _notes(models, [text]))


def search_by_image(models: AppModels, image: str | Image.Image | None, top_k: float) -> Found:
    """Pictures like a picture, by cosine alone: the ranker compares texts with pictures.

    Raises:
        InputError: see above; or a model that compares token by token, which is defined for a text and a picture.
    """
    if models.retriever.tokens is not None:
        raise InputError(
            "这个模型逐词元比较文字和图片，不能以图搜图",
            "this model compares texts with pictures token by token, not pictures with pictures",
        )
    image = checked_image(models, image)
    (result,) = models.retriever.search(images=image, top_k=int(checked_number(top_k, 1, MAX_TOP_K, "top_k")))
    return _found(result.hits, [])


def match(models: AppModels, image: str | Image.Image | None, texts: str) -> tuple[list[Row], list[str]]:
    """Match probability (calibrated where the model is) and cosine of a picture with each line, most probable first;
    and notes.

    Raises:
        InputError: see above; or a model without a ranker.
    """
    _require_ranker(models)
    image, lines = checked_image(models, image), checked_lines(texts)
    found = models.retriever.match(image, lines)
    rows = [
        Row(text, probability, cosine)
        for text, probability, cosine in zip(
            lines, found.match_probability[0].tolist(), found.cosine[0].tolist(), strict=True
        )
    ]
    return sorted(rows, key=lambda row: -row.probability), _notes(models, lines)


def classify(
    models: AppModels, image: str | Image.Image | None, labels: str, template: str, use_ranker: bool = False
) -> tuple[list[Row], list[str]]:
    """Zero-shot labels of a picture, best first, and notes.

    Args:
        labels: by commas (，、, too), semicolons or lines.
        template: with {} for the label.
        use_ranker: the match probability of each label (calibrated where the model is), which need not sum to 1;
            else a softmax over the labels.

    Raises:
        InputError: see above; or a template without {}, or `use_ranker` with a model that has none.
    """
    if use_ranker:
        _require_ranker(models)
    image, names = checked_image(models, image), checked_lines(labels, ",，、;；\n")
    template = checked_text(template)
    if "{}" not in template:
        raise InputError("提示模板里要有 {}，代表标签", "the prompt needs {} where the label goes")
    # not str.format: a visitor's braces are text
    prompts = [template.replace("{}", name) for name in names]
    if use_ranker:
        probabilities = models.retriever.match(image, prompts).match_probability[0].tolist()
        rows = [Row(name, probability) for name, probability in zip(names, probabilities, strict=True)]
        return sorted(rows, key=lambda row: -row.probability), _notes(models, prompts)
    scored = models.classify(image, candidate_labels=prompts, hypothesis_template="{}")
    label_of = dict(zip(prompts, names, strict=True))
    return [Row(label_of[entry["label"]], entry["score"]) for entry in scored], _notes(models, prompts)


def draw(
    models: AppModels,
    prompt: str,
    count: float,
    steps: float,
    guidance_scale: float,
    seed: float,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Pictures for a text, each with its own seed (seed, seed + 1, …), so that a number gives the same picture
    whatever `count` is; where the model has a ranker, the best matching first.

    Args:
        progress: called with (step, steps).

    Raises:
        InputError: see above.
    """
    prompt = checked_text(prompt)
    count = int(checked_number(count, 1, MAX_IMAGES, "count"))
    steps = int(checked_number(steps, 1, MAX_STEPS, "steps"))
    guidance_scale = float(checked_number(guidance_scale, 0, 20, "guidance_scale"))
    seed = int(checked_number(seed, 0, 2**31 - 1, "seed"))
    pipeline = models.text_to_image
    assert pipeline is not None  # without one there is no such tab

    def after_step(_, step, timestep, tensors):
        if progress is not None:
            progress(step + 1, steps)
        return tensors

    images = pipeline(
        prompt,
        num_images_per_prompt=count,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed + number) for number in range(count)],
        callback_on_step_end=after_step,
    ).images
    captions = [f"种子 seed {seed + number}" for number in range(count)]
    order = list(range(count))
    if models.can_rank:
        matched = models.retriever.match(images, prompt)
        scores = matched.score[:, 0].tolist()
        order.sort(key=lambda number: -scores[number])
        probabilities, cosines = matched.match_probability[:, 0].tolist(), matched.cosine[:, 0].tolist()
        captions = [
            f"{caption}\n匹配 {percent(probability)}\n余弦 {cosine:.2f}"
            for caption, probability, cosine in zip(captions, probabilities, cosines, strict=True)
        ]
    tiles = [Tile(_enlarged(images[number]), captions[number]) for number in order]
    limit = min(pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)
    return Found(tiles, reading_notes(pipeline.tokenizer, limit, [prompt]))


# -- tiles --------------------------------------------------------------------------------------


def percent(probability: float) -> str:
    """With a digit after the point, and never rounded to a certainty that the model has not."""
    if 0 < probability < 0.001:
        return "<0.1%"
    if 0.999 < probability < 1:
        return ">99.9%"
    return f"{100 * probability:.1f}%"


def _found(hits: list[SearchHit], notes: list[str]) -> Found:
    tiles, unreadable, changed = [], 0, 0
    for hit in hits:
        figures = f"余弦 {hit.cosine:.2f}"
        if hit.match_probability is not None:
            figures = f"匹配 {percent(hit.match_probability)}\n{figures} · 得分 {hit.score:.2f}"
        name = printable(hit.id.rsplit("/", 1)[-1])
        image = _thumbnail(hit)
        if image is None:
            unreadable += 1
            image = Image.new("RGB", (_TILE, _TILE), "#e4e7eb")
            name = f"{name} (读不到 unreadable)"
        elif hit.problem == "changed":
            changed += 1
            name = f"{name} (已改动 changed)"
        tiles.append(Tile(image, f"{hit.rank} · {name}\n{figures}"))
    if unreadable:
        notes = [*notes, f"{unreadable} 张图片读不到了 / pictures that cannot be read any more: {unreadable}"]
    if changed:
        notes = [*notes, f"{changed} 张图片在建索引后有改动 / pictures changed since they were indexed: {changed}"]
    return Found(tiles, notes)


def _thumbnail(hit: SearchHit) -> Image.Image | None:
    """The picture as the model sees it (RGB), small; None where it cannot be read any more."""
    if hit.image is None:
        return None
    try:
        image = hit.image.open()
    except ImageReadError:
        return None
    image.thumbnail((_TILE, _TILE))
    return image


def _enlarged(image: Image.Image) -> Image.Image:
    """At least 256 pixels wide, by a whole factor and without smoothing, so that small pictures show their pixels."""
    factor = -(-256 // image.width)
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
