"""Ranking the candidates of a query: the fast ranker and its caches against the plain published procedure.

    python benchmarks/ranking.py [--quick] [--study speed precision]

The yardstick, as the authors' evaluation does it: one query at a time, the text padded to 64 tokens, the image states
repeated for each candidate, both cross encoders run in full. The cascade's loss of recall is measured on the demo's
model, if there is one (--model), on the held-out vendors; "precision": what float16 and int8 states change there.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from caption_lengths import load as caption_lengths
from common import DEMO_MODEL, Check, Table, arguments, finish, interleave, median, ratio
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modeling_r2d2 import R2D2Config, R2D2Model
from modeling_r2d2.inference.packing import pack, unpack
from modeling_r2d2.inference.ranker import FastRanker, MatchLogits, RankedImages, RankedTexts
from modeling_r2d2.inference.scoring import TwoStageScore
from modeling_r2d2.model.modeling_r2d2 import match_probability

PADDED = 64
TINY = {
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 16,
    },
    "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64},
    "cross_encoder_config": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "projection_dim": 16,
}
#: speed wanted against the yardstick, by contender
WANTED = {"cached states": 1.5, "cached keys and values": 1.9, "cascade, states": 5.0, "cascade, keys and values": 7.0}


def plain(model: R2D2Model, text: Tensor, length: int, images: Tensor) -> Tensor:
    """The published procedure for one query: (C,) match probabilities."""
    count = len(images)
    padded = torch.nn.functional.pad(text, (0, 0, 0, PADDED - text.shape[1])).repeat(count, 1, 1)
    mask = (torch.arange(PADDED) < length).long().repeat(count, 1)
    text_cross = model.text_image_encoder(padded, images, attention_mask=mask).last_hidden_state[:, 0]
    queries = model.image_joint_projection(images)
    image_cross = model.image_text_encoder(queries, padded, encoder_attention_mask=mask).last_hidden_state[:, 0]
    return match_probability(model.text_image_match_head(text_cross), model.image_text_match_head(image_cross))


def fast(ranker: FastRanker, text: Tensor, length: int, kept: dict[str, Tensor], cascade: int | None = None) -> Tensor:
    """From what is kept of the candidates to their match probabilities (C,), the reading and widening included."""
    texts = RankedTexts(text, torch.tensor([length]))
    tensors = unpack(kept, text.dtype, "cpu")
    first = RankedImages(tensors["states"], tensors.get("queries"), tensors.get("keys"), tensors.get("values"))
    candidates = torch.arange(len(first.states))
    zeros = torch.zeros_like(candidates)
    if cascade is None:
        images = first if first.queries is not None else ranker.prepare(first.states)
        return ranker.logits(texts, images, zeros, candidates).match_probability
    alone = ranker.logits(texts, first, zeros, candidates, image_text=False).match_probability
    best = alone.topk(min(cascade, len(alone))).indices.sort().values
    images = first if first.queries is not None else ranker.prepare(first.states[best])
    places = best if first.queries is not None else torch.arange(len(best))
    second = ranker.logits(texts, images, zeros[: len(best)], places, text_image=False).match_probability
    alone[best] = (alone[best] + second) / 2
    return alone


def bytes_of(kept: dict[str, Tensor]) -> int:
    """What tensors take, all together."""
    return sum(each.numel() * each.element_size() for each in kept.values())


def spread_weights(model: R2D2Model) -> None:
    """Random weights whose probabilities differ between pictures, so that a difference of rounding could show."""
    generator = torch.Generator().manual_seed(1)
    for head in (model.text_image_match_head, model.image_text_match_head):
        with torch.no_grad():
            head.weight.normal_(std=0.3, generator=generator)


@torch.inference_mode()
def measure(config: R2D2Config, candidates: int, cascade: int, rounds: int, model_folder: Path, quick: bool) -> Table:
    """One query and its candidates in every round, all contenders beside one another."""
    torch.manual_seed(0)
    model = R2D2Model(config).eval()
    spread_weights(model)
    ranker = FastRanker(model)
    size = config.vision_config.image_size
    pixels = torch.randn(candidates, 3, size, size)
    states = torch.cat([model.get_image_features(part).last_hidden_state for part in pixels.split(8)])
    lengths = sorted(caption_lengths())
    length = lengths[len(lengths) // 2] + 2  # the median caption, with [CLS] and [SEP]
    ids = torch.randint(5, config.text_config.vocab_size, (1, length))
    text = model.get_text_features(ids).last_hidden_state
    prepared = vars(ranker.prepare(states, keys_values=True))
    kept = {
        "cached states": pack({"states": states}, "float32"),
        "cached states, float16": pack({"states": states}, "float16"),
        "cached states, int8": pack({"states": states}, "int8"),
        "cached keys and values": pack(prepared, "float32"),
        "cached keys and values, float16": pack(prepared, "float16"),
    }
    contenders = {"published procedure": partial(plain, model, text, length, states)}
    contenders["recomputed, picture encoding included"] = lambda: fast(
        ranker,
        text,
        length,
        {"states": torch.cat([model.get_image_features(part).last_hidden_state for part in pixels.split(8)])},
    )
    contenders |= {name: partial(fast, ranker, text, length, each) for name, each in kept.items()}
    contenders["cascade, states"] = partial(fast, ranker, text, length, kept["cached states"], cascade)
    contenders["cascade, keys and values"] = partial(
        fast, ranker, text, length, kept["cached keys and values"], cascade
    )
    reference = contenders["published procedure"]()
    difference = {name: (run() - reference).abs().max().item() for name, run in contenders.items()}
    flops = {}
    model.set_attn_implementation("eager")
    for name in ("published procedure", "cached states", "cached keys and values"):
        with FlopCounterMode(display=False) as counter:
            contenders[name]()
        flops[name] = counter.get_total_flops() / candidates / 1e9
    model.set_attn_implementation("sdpa")
    seconds = interleave(contenders, rounds, warmup=0)
    speed = {name: ratio(seconds["published procedure"], each) for name, each in seconds.items()}
    memory = {name: bytes_of(each) / candidates for name, each in kept.items()}
    rows = [
        {
            "ranker": name,
            "pairs/s": candidates / median(each),
            "s a query": median(each),
            "speed": speed[name],
            "GFLOP a pair": flops.get(name),
            "MB a picture": memory[name] / 1e6 if name in memory else None,
            "largest change": None if name.startswith("cascade") else difference[name],
        }
        for name, each in seconds.items()
    ]
    checks = [Check(f"speed, {name}", speed[name], wanted, ">=") for name, wanted in WANTED.items()]
    exact = max(difference["cached states"], difference["cached keys and values"])
    checks.append(Check("largest change of a match probability, exact rankers", exact, 1e-5, "<", ".1e"))
    notes = ["speed: pairs/s against the published procedure, by rounds; change: of the match probability."]
    loss = None if quick else recall_lost(model_folder, candidates, cascade)
    if loss is None:
        notes.append("The cascade's loss of recall was not measured: there is no demo model.")
    else:
        checks += [
            Check(f"R@1 lost by the cascade, {name}, points", value, 0.3001, "<") for name, value in loss.items()
        ]
    return Table(
        "ranking",
        "Ranking the candidates of one query, ViT-B/16, float32",
        "Random weights; a caption of median length, its candidates' states encoded before.",
        {"ranker": "", "pairs/s": ".2f", "s a query": ".2f", "speed": ".2f"}
        | {"GFLOP a pair": ".1f", "MB a picture": ".2f", "largest change": ".1e"},
        rows,
        {"candidates": candidates, "cascade": cascade, "text_tokens": length, "chunk": ranker.chunk, "rounds": rounds},
        checks,
        notes,
        quick=quick,
    )


def recall_lost(folder: Path, candidates: int, cascade: int) -> dict[str, float] | None:
    """R@1 in points, text → image, that the cascade loses on the demo's held-out vendors; None without the model."""
    if not (folder / "model.safetensors").is_file():
        return None
    lost = {}
    for gallery in demo_galleries(folder, candidates):
        logits = gallery.logits(gallery.states)
        both = gallery.scores(logits)
        alone = gallery.scores(replace(logits, image_match_logits=None))
        kept = alone.topk(min(cascade, alone.shape[1]), dim=1).indices
        chosen = torch.zeros_like(both, dtype=torch.bool).scatter_(1, kept, True)
        lost[gallery.vendor] = gallery.recall(both) - gallery.recall(both.masked_fill(~chosen, -torch.inf))
    return lost


@dataclass
class DemoGallery:
    """One query a concept with its candidates (Q, C) among a test vendor's pictures, encoded by the demo's model."""

    vendor: str
    ranker: FastRanker
    texts: RankedTexts
    states: Tensor
    cosine: Tensor
    candidates: Tensor
    score: TwoStageScore

    def logits(self, states: Tensor) -> MatchLogits:
        """Of all queries with their candidates, (Q · C)."""
        rows = torch.arange(len(self.candidates)).repeat_interleave(self.candidates.shape[1])
        return self.ranker.logits(self.texts, self.ranker.prepare(states), rows, self.candidates.flatten())

    def scores(self, logits: MatchLogits) -> Tensor:
        """Both stages' score, (Q, C)."""
        return self.score(self.cosine, logits.match_log_odds.view_as(self.cosine))

    def recall(self, scores: Tensor) -> float:
        """R@1 in percent."""
        first = self.candidates.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
        return 100 * (first == torch.arange(len(first))).float().mean().item()


def demo_galleries(folder: Path, candidates: int) -> Iterator[DemoGallery]:
    """Those of the demo's test vendors."""
    from modeling_r2d2.evaluation import encode_images, encode_texts
    from modeling_r2d2.inference.models import load_model
    from modeling_r2d2.processing.datasets.emoji import EmojiPairs

    model, processor = load_model(folder)
    for vendor in ("twitter", "windows"):
        pairs = EmojiPairs([vendor])
        images = encode_images(model, processor, [pairs.image(place) for place in range(len(pairs))])
        texts = encode_texts(model, processor, pairs.names())
        cosine = texts.embeds @ images.embeds.t()
        best = cosine.topk(min(candidates, len(pairs)), dim=1).indices
        ranked = RankedTexts(texts.hidden_states, texts.attention_mask.sum(dim=1))
        yield DemoGallery(
            vendor,
            FastRanker(model),
            ranked,
            images.hidden_states,
            cosine.gather(1, best),
            best,
            TwoStageScore.of(model),
        )


@torch.inference_mode()
def measure_precision(folder: Path, candidates: int) -> Table:
    """What states kept in fewer bits change for a trained ranker."""
    rows = []
    for gallery in demo_galleries(folder, candidates):
        exact = gallery.logits(gallery.states).match_probability
        for precision in ("float32", "float16", "int8"):
            kept = pack({"states": gallery.states}, precision)
            found = gallery.logits(unpack(kept, torch.float32, "cpu")["states"])
            change = (found.match_probability - exact).abs()
            rows.append(
                {
                    "vendor": gallery.vendor,
                    "states": precision,
                    "kB a picture": bytes_of(kept) / len(gallery.states) / 1e3,
                    "largest change": change.max().item(),
                    "mean change": change.mean().item(),
                    "R@1": gallery.recall(gallery.scores(found)),
                }
            )
    return Table(
        "ranking_precision",
        "Image states kept in fewer bits, the demo's model",
        f"Change of the match probability of {candidates} candidates of each of 300 queries, and R@1 text→image of "
        "both stages, in percent.",
        {"vendor": "", "states": "", "kB a picture": ".1f"}
        | {"largest change": ".1e", "mean change": ".1e", "R@1": ".1f"},
        rows,
        {"candidates": candidates},
        script="ranking",
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--cascade", type=int, default=16, help="candidates that both encoders see")
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, help="demo model, for what needs a trained one")
    parser.add_argument("--study", choices=["speed", "precision"], nargs="+", default=["speed", "precision"])
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    if options.quick:
        return finish(measure(R2D2Config(**TINY), 6, 2, 2, options.model, quick=True), options.tables)
    status = 0
    if "speed" in options.study:
        config = R2D2Config.from_preset("r2d2-vit-b-16")
        table = measure(config, options.candidates, options.cascade, options.rounds, options.model, quick=False)
        status = finish(table, options.tables)
    if "precision" in options.study:
        status |= finish(measure_precision(options.model, options.candidates), options.tables)
    return status


if __name__ == "__main__":
    sys.exit(main())
