"""Indexing pictures against encoding them and nothing else.

    python benchmarks/indexing.py [--quick]

Both decode the same files and run the same tower in the same batches; the index also hashes contents, keeps states,
writes its files with their checksums and publishes. `encode_images` is what is compared with.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import Check, Table, arguments, finish, interleave, median, ratio
from PIL import Image
from ranking import TINY

from modeling_r2d2 import R2D2Config, R2D2Model, R2D2Processor
from modeling_r2d2.evaluation import encode_images
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from modeling_r2d2.search.building import IndexBuilder
from modeling_r2d2.search.cache import CacheOptions


def write_images(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG files of smooth random colours."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        paths.append(folder / f"{number:05}.jpg")
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def measure(config: R2D2Config, count: int, side: int, batch: int, rounds: int, quick: bool) -> Table:
    """Encode, and index in every round anew."""
    torch.manual_seed(0)
    model = R2D2Model(config).eval()
    tokenizer = build_character_tokenizer(["图片"])
    processor = R2D2Processor.build(tokenizer, image_size=config.vision_config.image_size)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "pictures").mkdir()
        paths = write_images(root / "pictures", count, side)

        def index(keep: str) -> None:
            shutil.rmtree(root / keep, ignore_errors=True)
            builders[keep].add(root / "pictures")

        kinds = ("none", "states", "keys_values")
        builders = {
            keep: IndexBuilder(model, processor, root / keep, CacheOptions(keep), batch_size=batch) for keep in kinds
        }
        contenders = {"encode_images": lambda: encode_images(model, processor, paths, batch, keep_states=False)}
        contenders |= {f"index, keep {keep}": lambda keep=keep: index(keep) for keep in kinds}
        seconds = interleave(contenders, rounds)
        bytes_of = {keep: sum(f.stat().st_size for f in (root / keep).rglob("*") if f.is_file()) for keep in kinds}
    overhead = {name: ratio(each, seconds["encode_images"]) - 1 for name, each in seconds.items()}
    rows = [
        {
            "work": name,
            "pictures/s": count / median(each),
            "over encoding": overhead[name],
            "MB a picture": bytes_of[name.split()[-1]] / count / 1e6 if name.startswith("index") else None,
        }
        for name, each in seconds.items()
    ]
    return Table(
        "indexing",
        "Indexing pictures, ViT-B/16, float32",
        "Random weights, JPEG files; medians, and the overhead as the median of the rounds' own ratios.",
        {"work": "", "pictures/s": ".2f", "over encoding": "+.1%", "MB a picture": ".3f"},
        rows,
        {"pictures": count, "side": side, "batch": batch, "rounds": rounds},
        [
            Check(f"overhead of indexing over encoding, keep {keep}", overhead[f"index, keep {keep}"], 0.08, "<", ".1%")
            for keep in ("none", "states")
        ],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    options = arguments(__doc__, rounds=3).parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    if options.quick:
        table = measure(R2D2Config(**TINY), 6, 40, 2, 2, quick=True)
    else:
        table = measure(R2D2Config.from_preset("r2d2-vit-b-16"), 64, 500, 32, options.rounds, quick=False)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
