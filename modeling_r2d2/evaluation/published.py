"""Figures that papers have published, to be read beside one's own and never mixed with them.

They were measured by other people, on other machines, with other code; a comparison holds only where model, data,
split and protocol are the same. All are percent, as published tables give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Setting = Literal["zero-shot", "fine-tuned"]
Direction = Literal["text_to_image", "image_to_text"]
R2D2, WUKONG, BRIVL, CHINESE_CLIP = (
    "arXiv 2205.03860",
    "arXiv 2202.06767",
    "as reported for arXiv 2103.06561",
    "arXiv 2211.01335",
)


@dataclass(frozen=True)
class PublishedRecall:
    """Recall@1/5/10 of one direction; None where it was not published."""

    model: str
    data: str
    setting: Setting
    direction: Direction
    recall: tuple[float | None, float | None, float | None]
    source: str


def _both(model, data, setting, image_to_text, text_to_image, source) -> list[PublishedRecall]:
    rows: dict[Direction, Any] = {"image_to_text": image_to_text, "text_to_image": text_to_image}
    return [PublishedRecall(model, data, setting, way, recall, source) for way, recall in rows.items() if recall]


_L250 = "R2D2 ViT-L (250M)"
PUBLISHED: tuple[PublishedRecall, ...] = (
    *_both(_L250, "Flickr30k-CN", "zero-shot", (77.6, 96.7, 98.9), (60.9, 86.8, 92.7), R2D2),
    *_both(_L250, "Flickr30k-CN", "fine-tuned", (95.6, 99.8, 100.0), (84.4, 96.7, 98.4), R2D2),
    *_both(_L250, "COCO-CN", "zero-shot", (63.3, 89.3, 95.7), (56.4, 85.0, 93.1), R2D2),
    *_both(_L250, "COCO-CN", "fine-tuned", (79.3, 97.1, 98.7), (79.1, 96.5, 98.9), R2D2),
    *_both(_L250, "MUGE", "zero-shot", None, (49.5, 75.7, 83.2), R2D2),
    *_both(_L250, "MUGE", "fine-tuned", None, (60.1, 82.9, 89.4), R2D2),
    *_both("Wukong ViT-L", "Flickr30k-CN", "zero-shot", (76.1, 94.8, 97.5), (51.7, 78.9, 86.3), WUKONG),
    *_both("Wukong ViT-L", "COCO-CN", "zero-shot", (55.2, 81.0, 90.6), (53.4, 80.2, 90.1), WUKONG),
    *_both("Wukong ViT-L", "MUGE", "zero-shot", None, (42.7, 69.0, 78.0), WUKONG),
    *_both("BriVL", "Flickr30k-CN", "zero-shot", (17.7, 42.3, 54.3), (10.3, 27.5, 37.9), BRIVL),
    *_both("BriVL", "AIC-ICC", "zero-shot", (20.3, 37.0, 45.6), (14.4, None, 39.1), BRIVL),
    *_both(
        "Chinese-CLIP (best size)", "Flickr30k-CN", "zero-shot", (81.6, 97.5, 98.8), (71.2, 91.4, 95.5), CHINESE_CLIP
    ),
    *_both("Chinese-CLIP (best size)", "COCO-CN", "zero-shot", (63.0, 86.6, 92.9), (69.2, 89.9, 96.1), CHINESE_CLIP),
    *_both("Chinese-CLIP (best size)", "MUGE", "zero-shot", None, (63.0, 84.1, 89.2), CHINESE_CLIP),
)
#: Zero-shot classification of Wukong ViT-L, accuracy in percent (arXiv 2202.06767).
WUKONG_CLASSIFICATION = {
    "CIFAR10": 95.4,
    "CIFAR100": 77.1,
    "Caltech101": 92.4,
    "Caltech256": 89.2,
    "DTD": 40.9,
    "Sports": 99.1,
    "Flowers": 68.9,
    "SUN397": 62.0,
    "EuroSAT": 50.3,
    "ImageNet": 55.0,
}


def published_recalls(data: str) -> list[PublishedRecall]:
    """What was published on a data set; none for a set that no paper here reports. Case does not matter."""
    return [row for row in PUBLISHED if row.data.lower() == data.lower()]


def published_table(data: str) -> str | None:
    """A Markdown table of the published figures of a data set, labelled so; None where there are none."""
    if data.lower() in (lower := {name.lower(): name for name in WUKONG_CLASSIFICATION}):
        name = lower[data.lower()]
        head = ["| model | setting | top-1 | source |", "|---|---|---:|---|"]
        lines = [f"| Wukong ViT-L | zero-shot | {WUKONG_CLASSIFICATION[name]} | {WUKONG} |"]
    else:
        rows = published_recalls(data)
        if not rows:
            return None
        name = rows[0].data
        head = ["| model | setting | direction | R@1 | R@5 | R@10 | source |", "|---|---|---|---:|---:|---:|---|"]
        arrows = {"text_to_image": "text→image", "image_to_text": "image→text"}
        lines = [
            f"| {row.model} | {row.setting} | {arrows[row.direction]} | "
            + " | ".join("–" if value is None else f"{value:.1f}" for value in row.recall)
            + f" | {row.source} |"
            for row in rows
        ]
    title = f"**Published on {name}, not measured here** (by the papers' authors, with their own code):"
    return "\n".join([title, "", *head, *lines])
