"""The published sets as builders of the `datasets` library.

```python
from modeling_r2d2.processing.datasets.builders import Flickr30kCNA

builder = Flickr30kCNA(path="flickr30k-cna", split="test", image_root="flickr30k-images")
builder.download_and_prepare()
data = builder.as_dataset(split="test")  # the split is called "data" where none was named
data[0]  # image, text (a list), image_id, text_id, label, location
```

`datasets` runs no loading scripts any more, so a builder is imported and called. The prepared table lies in the
library's cache under a fingerprint of the source's files: changed files are read again. Bad records are counted,
reported and refused as `load_pairs` does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from .formats import BENCHMARKS, find_sources
from .loading import load_pairs
from .pairs import PairDataset
from .sources import expand
from .streaming import StreamingPairs


@dataclass
class PairBuilderConfig(datasets.BuilderConfig):
    """A set and how to read it.

    Args:
        path: file or folder of the set.
        split: which of its splits.
        image_root: as in `load_pairs`.
        columns: as in `load_pairs`.
        encoding: as in `load_pairs`.
        on_error: as in `load_pairs`.
        max_error_rate: as in `load_pairs`.
        check_images: as in `load_pairs`.
        files: fingerprint of the source's files, filled in.
    """

    path: str | None = None
    split: str | None = None
    image_root: str | None = None
    columns: dict | None = None
    encoding: str | None = None
    on_error: str = "skip"
    max_error_rate: float = 0.01
    check_images: str = "header"
    files: str = ""


class PairBuilder(datasets.GeneratorBasedBuilder):
    """A published set as a table of pairs; see the sub-classes.

    Raises:
        ValueError, FileNotFoundError, DataRefusedError: as `load_pairs`.
    """

    FORMAT: str
    BUILDER_CONFIG_CLASS = PairBuilderConfig

    def __init__(self, *args: Any, path: str | os.PathLike | None = None, **kwargs: Any) -> None:
        if path is None:
            raise ValueError(
                f"{type(self).__name__} needs path=, the file or folder of {BENCHMARKS[self.FORMAT].title}"
            )
        root = kwargs.pop("image_root", None)
        names = expand(path)
        super().__init__(
            *args,
            path=os.fspath(path),
            image_root=None if root is None else os.fspath(root),
            files=_fingerprint(self.FORMAT, names, kwargs.get("split")),
            **kwargs,
        )

    def _info(self) -> datasets.DatasetInfo:
        text = datasets.Value("string")
        columns = {
            "image": datasets.Image(),
            "text": datasets.List(text),
            "image_id": text,
            "text_id": text,
            "label": datasets.Value("int64"),
            "location": text,
        }
        return datasets.DatasetInfo(description=BENCHMARKS[self.FORMAT].title, features=datasets.Features(columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(self.config.split or "data")]

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        config = self.config
        pairs = load_pairs(
            config.path,
            format=self.FORMAT,
            split=config.split,
            image_root=config.image_root,
            columns=config.columns,
            encoding=config.encoding,
            on_error=config.on_error,
            max_error_rate=config.max_error_rate,
            check_images=config.check_images,
        )
        if isinstance(pairs, PairDataset):
            rows = (
                {**pairs.record(index), "text": pairs.texts(index), "location": pairs.location(index)}
                for index in range(len(pairs))
            )
        else:
            assert isinstance(pairs, StreamingPairs)  # as of every format
            rows = ({**s, "text": [s["text"]] if isinstance(s["text"], str) else s["text"]} for s in pairs)
        for number, row in enumerate(rows):
            yield number, {"label": None, "text_id": None, **row}


def _fingerprint(format: str, names: list[str], split: str | None) -> str:
    """A digest of name, size and time of change of the files that will be read."""
    digest = hashlib.blake2b(digest_size=8)
    for source in find_sources(BENCHMARKS[format], names, split):
        digest.update(source.name.encode())
        path = Path(source.name)
        for file in [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []:
            stat = file.stat()
            digest.update(f"{file}:{stat.st_size}:{stat.st_mtime_ns}".encode())
        beside = path.with_name(path.name.replace("_texts.jsonl", "_imgs.tsv"))
        if beside != path and beside.is_file():
            digest.update(f"{beside.stat().st_size}:{beside.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


class ICM(PairBuilder):
    """Image-caption matching of CCMB: labelled pairs."""

    FORMAT = "icm"


class IQM(PairBuilder):
    """Image-query matching of CCMB: labelled pairs."""

    FORMAT = "iqm"


class ICR(PairBuilder):
    """Image-caption retrieval of CCMB."""

    FORMAT = "icr"


class IQR(PairBuilder):
    """Image-query retrieval of CCMB."""

    FORMAT = "iqr"


class Flickr30kCNA(PairBuilder):
    """Flickr30k-CNA: Flickr30k with Chinese captions by professionals."""

    FORMAT = "flickr30k-cna"


class ChineseCLIPFormat(PairBuilder):
    """Any set in the Chinese-CLIP format, such as MUGE."""

    FORMAT = "chinese-clip"


class AICICC(PairBuilder):
    """AIC-ICC: five captions a picture."""

    FORMAT = "aic-icc"


class COCOCN(PairBuilder):
    """COCO-CN."""

    FORMAT = "coco-cn"


class Zero(PairBuilder):
    """Zero: several texts a picture."""

    FORMAT = "zero"


class Wukong(PairBuilder):
    """Wukong, fetched by img2dataset."""

    FORMAT = "wukong"
