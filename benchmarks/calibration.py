"""How far the match probability is from the share of true pairs, before and after calibration.

    python benchmarks/calibration.py [--quick] [--models DIR …]

Fitted on the Samsung emoji that the demo's training leaves out, measured on a vendor that no training saw; wrong pairs
drawn uniformly, or as FGR draws its negatives (by the first model; the same list of pairs for every model).
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from common import DEMO_MODELS, ROOT, Check, Table, arguments, finish
from torch import Tensor

from modeling_r2d2 import R2D2Model, R2D2Processor
from modeling_r2d2.figures.reliability import reliability_plot
from modeling_r2d2.inference.calibrating import PairList, draw_pairs, load_gallery
from modeling_r2d2.inference.calibration import fit_log_odds, reliability
from modeling_r2d2.inference.encoding import EncodedImages, EncodedTexts, encode_images, encode_texts
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.inference.negatives import similarity_logits
from modeling_r2d2.inference.ranker import FastRanker
from modeling_r2d2.processing.datasets.gallery import Gallery

NEGATIVES = {"uniform": "drawn uniformly", "hard": "drawn as in FGR"}


@dataclass
class Encoded:
    """A gallery as a model encodes it."""

    model: R2D2Model
    gallery: Gallery
    texts: EncodedTexts
    images: EncodedImages

    @classmethod
    def by(cls, model: R2D2Model, processor: R2D2Processor, gallery: Gallery) -> "Encoded":
        texts, images = (encode_texts(model, processor, gallery.texts), encode_images(model, processor, gallery.images))
        return cls(model, gallery, texts, images)

    @cached_property
    def similarity(self) -> Tensor:
        """s/τ of every text and picture."""
        return similarity_logits(self.model, self.texts, self.images)

    def draw(self, negatives: str, per_positive: int | None = None) -> PairList:
        """Pairs whose hard negatives are this model's."""
        return draw_pairs(self.gallery.positives(), negatives, per_positive, logits=self.similarity)

    def evidence(self, pairs: PairList) -> tuple[Tensor, Tensor]:
        """The model's own log-odds of a match, not calibrated, and s/τ."""
        ranker, index = FastRanker(self.model), (pairs.text_index, pairs.image_index)
        return ranker.match_log_odds(self.texts, self.images, *index), self.similarity[index]


def measure(
    models: dict[str, tuple], fit: Gallery, test: Gallery, per_positive: int, plot: Path | None, quick: bool
) -> Table:
    """Fit each model on `fit`, measure on `test`."""
    encoded = {name: [Encoded.by(*model, part) for part in (fit, test)] for name, model in models.items()}
    first = next(iter(encoded.values()))
    rows, checks, curves = [], [], {}
    for kind, drawn in NEGATIVES.items():
        lists = [first[0].draw(kind), first[1].draw(kind, per_positive)]
        for name, galleries in encoded.items():
            (z, s), (test_z, test_s) = (g.evidence(pairs) for g, pairs in zip(galleries, lists, strict=True))
            # what s/τ says of a pair, drawing hard ones by exp(s/τ) has used up
            fitted = fit_log_odds(z, lists[0].labels, s if kind == "uniform" else None, lists[0].groups)
            share = float(lists[1].labels.double().mean())  # told to the calibration as its prior
            before = reliability(test_z.sigmoid(), lists[1].labels)
            after = reliability(fitted.with_prior(share).of_log_odds(test_z, test_s), lists[1].labels)
            rows.append(
                {
                    "model": name,
                    "wrong pairs": drawn,
                    "method": fitted.method,
                    "slope": fitted.slope,
                    "similarity": fitted.similarity_slope,
                    "intercept": fitted.intercept,
                    "fitted on": fitted.pairs,
                    "measured on": len(test_z),
                    "true": share,
                    "ECE before": before.error,
                    "ECE after": after.error,
                }
            )
            if name == next(iter(encoded)):
                curves |= {f"before, wrong pairs {drawn}": before, f"after, wrong pairs {drawn}": after}
                if kind == "uniform":
                    checks.append(Check("expected calibration error after, uniform", after.error, 0.0301, "<", ".3f"))
    if plot is not None:
        reliability_plot(curves, plot, title="Match probability of the demo model on a vendor it never saw")
    return Table(
        "calibration",
        "Calibrated match probabilities",
        "Expected calibration error (15 bins of equally many pairs) on Twitter's emoji, fitted on Samsung's kept-out.",
        {
            "model": "",
            "wrong pairs": "",
            "method": "",
            "slope": ".2f",
            "similarity": ".2f",
            "intercept": ".2f",
            "fitted on": ",d",
        }
        | {"measured on": ",d", "true": ".1%", "ECE before": ".3f", "ECE after": ".3f"},
        rows,
        {"wrong_pairs_per_true_pair_measured": per_positive},
        checks,
        quick=quick,
    )


def quick_gallery(seed: int) -> Gallery:
    """Eight plain colours with names."""
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 256, (8, 3), generator=generator).tolist()
    ids = list("红黄蓝白黑绿紫灰")
    return Gallery([Image.new("RGB", (40, 40), tuple(color)) for color in colors], ids, ids, [[name] for name in ids])


def quick_model() -> tuple:
    """Random weights; the match heads are turned so that true pairs of this gallery are the likelier ones."""
    from ranking import TINY

    from modeling_r2d2 import R2D2Config
    from modeling_r2d2.processing.tokenization import build_character_tokenizer

    processor = R2D2Processor.build(build_character_tokenizer("红黄蓝白黑绿紫灰"), image_size=64)
    for seed in range(50):
        torch.manual_seed(seed)
        model = R2D2Model(R2D2Config(**TINY, initializer_range=0.5)).eval()
        encoded = Encoded.by(model, processor, quick_gallery(0))
        try:
            for kind in NEGATIVES:
                pairs = encoded.draw(kind)
                fit_log_odds(encoded.evidence(pairs)[0], pairs.labels, groups=pairs.groups)
        except ValueError:
            continue
        return model, processor
    raise RuntimeError("no seed gives a model whose probabilities say anything")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--models", type=Path, nargs="+", default=list(DEMO_MODELS), help="the first draws")
    parser.add_argument("--vendor", default="twitter", help="to measure on (default: %(default)s)")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "reliability.png")
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    if options.quick:
        models = {"random": quick_model()}
        table = measure(models, quick_gallery(0), quick_gallery(1), 3, None, quick=True)
    else:
        models = {folder.name: load_model(folder) for folder in options.models}
        test = load_gallery(f"demo:{options.vendor}")
        table = measure(models, load_gallery("demo"), test, 4, options.plot, quick=False)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
