"""Fine-tuning the demo's model: new concepts by LoRA, matching, captions; all judged on vendors never trained on.

    python benchmarks/finetuning.py [--quick] [--only lora matching caption] [--model DIR]

Samsung's pictures chose learning rates and lengths; Twitter and Windows were never tuned on.
"""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEMO_MODEL, QUICK_TABLES, Check, Table, arguments, finish

from modeling_r2d2 import R2D2ForConditionalGeneration, R2D2Model, R2D2Processor
from modeling_r2d2.evaluation import evaluate_retrieval
from modeling_r2d2.evaluation.captioning import captioning_metrics
from modeling_r2d2.evaluation.matching_pairs import MatchingPairs, make_matching_pairs, pair_probabilities
from modeling_r2d2.finetuning import FinetuningSettings, finetune
from modeling_r2d2.inference.matching import matching_metrics
from modeling_r2d2.processing.datasets.emoji import EmojiPairs, demo300_keys, emoji_concepts
from modeling_r2d2.processing.datasets.gallery import Gallery

TRAINING = ("apple", "facebook", "google", "joypixels")
TEST = ("twitter", "windows")
NEW_CONCEPTS = 60
STAGES = {"pre_ranking": "pre-ranking", "fused": "both stages", "published": "both stages, published score"}
COLUMNS = {"part": "", "vendor": "", "measure": "", "before": ".1f", "after": ".1f"}


class UnseenEmoji(EmojiPairs):
    """Concepts that the demo never saw and whose names its tokenizer knows, at even spacing."""

    def __init__(self, vendors: tuple[str, ...] | list[str], processor: R2D2Processor, count: int = NEW_CONCEPTS):
        seen, tokenizer = set(demo300_keys()), processor.tokenizer
        known = [
            concept.key
            for concept in emoji_concepts()
            if concept.key not in seen
            and tokenizer.unk_token_id not in tokenizer(concept.name)["input_ids"]
            and len(tokenizer.tokenize(concept.name)) + 2 <= tokenizer.model_max_length
        ]
        places = np.linspace(0, len(known) - 1, count).round().astype(int)
        super().__init__(vendors, concepts=[known[place] for place in places])


def run(task: str, model: Path, output: Path, train: Any, validation: Any, **overrides: Any) -> tuple[float, str]:
    """Fine-tune by the small-data preset; wall seconds, and what trained."""
    if output.exists():
        shutil.rmtree(output)
    settings = FinetuningSettings.from_preset(
        task,
        output,
        "small",
        dataloader_num_workers=0,
        logging_steps=1000,
        arguments={"disable_tqdm": True},
        **overrides,
    )
    start = time.perf_counter()
    _, report = finetune(model, train, settings, validation, print_line=print)
    share = sum(report.trainable.values()) / (sum(report.trainable.values()) + sum(report.frozen.values()))
    return time.perf_counter() - start, f"{report.method}, {100 * share:.0f} % of the parameters"


def lora(model: Path, runs: Path, quick: bool) -> tuple[list[dict], dict[str, Any], list[Check]]:
    """Retrieval of new concepts, zero-shot and after LoRA."""
    processor = R2D2Processor.from_pretrained(model)
    sets = {vendor: UnseenEmoji([vendor], processor) for vendor in (*TEST, "samsung")}
    output = runs / "lora"
    seconds, trained = run(
        "retrieval",
        model,
        output,
        UnseenEmoji(TRAINING, processor),
        sets["samsung"],
        num_train_epochs=1 if quick else 40,
        learning_rate=3e-3,
        eval_every=5,
    )
    rows = []
    for vendor in TEST:
        images = [sets[vendor].image(index) for index in range(len(sets[vendor]))]
        results = [
            evaluate_retrieval(R2D2Model.from_pretrained(path), processor, images, sets[vendor].names(), candidates=32)
            for path in (model, output)
        ]
        recalls = [{"pre_ranking": result.pre_ranking, **(result.two_stage_by_score or {})} for result in results]
        for stage, name in STAGES.items():
            for way in ("text_to_image", "image_to_text"):
                before, after = (each[stage][f"{way}_r1"] for each in recalls)
                measure = f"{way.replace('_to_', '→')} R@1, {name}"
                rows.append(_row(f"LoRA, {NEW_CONCEPTS} new concepts", vendor, measure, before, after))
    gain = rows[0]["after"] - rows[0]["before"]
    checks = [
        Check("LoRA on 60 new concepts: text→image R@1 on Twitter above zero-shot, points", gain, 30.0, ">=", ".1f"),
        Check("LoRA on 60 new concepts: seconds of training", seconds, 180.0, "<", ".0f"),
    ]
    return rows, {"lora": f"{trained}, {seconds:.0f} s"}, checks


def matching(model: Path, runs: Path, quick: bool) -> tuple[list[dict], dict[str, Any], list[Check]]:
    """ROC-AUC with negatives drawn uniformly and as in FGR (by the model before); every model on the same list."""
    processor = R2D2Processor.from_pretrained(model)
    before = R2D2Model.from_pretrained(model)
    output = runs / "matching"
    seconds, trained = run(
        "matching",
        model,
        output,
        EmojiPairs((*TRAINING, "samsung"), calibration="exclude"),
        EmojiPairs(["samsung"], calibration="only"),
        num_train_epochs=1 if quick else 6,
        per_device_train_batch_size=64,
        eval_every=2,
    )
    after = R2D2Model.from_pretrained(output)
    rows = []
    for vendor in TEST:
        gallery = Gallery.from_pairs(EmojiPairs([vendor]))
        for negatives in ("uniform", "fgr"):
            listed = _saved_pairs(runs / f"pairs-{vendor}-{negatives}.jsonl", gallery, negatives, before, processor)
            places = listed.image_index(gallery)
            auc = [
                matching_metrics(
                    pair_probabilities(network, processor, gallery.images, places, listed.texts), listed.labels
                )[0]["auc"]
                for network in (before, after)
            ]
            rows.append(_row("matching", vendor, f"ROC-AUC, negatives {negatives.replace('fgr', 'as in FGR')}", *auc))
    checks = [Check("matching: ROC-AUC on Twitter, uniform negatives, %", rows[0]["after"], 97.0, ">=", ".1f")]
    return rows, {"matching": f"{trained}, {seconds:.0f} s"}, checks


def _saved_pairs(
    path: Path, gallery: Gallery, negatives: str, model: R2D2Model, processor: R2D2Processor
) -> MatchingPairs:
    if not path.is_file():
        make_matching_pairs(gallery, negatives, model=model, processor=processor).save(path)
    return MatchingPairs.load(path)


def caption(model: Path, runs: Path, quick: bool) -> tuple[list[dict], dict[str, Any], list[Check]]:
    """Names of the demo's 300 concepts written under pictures of vendors never seen."""
    output = runs / "caption"
    seconds, trained = run(
        "caption",
        model,
        output,
        EmojiPairs((*TRAINING, "samsung"), calibration="exclude"),
        EmojiPairs(["samsung"], calibration="only"),
        num_train_epochs=1 if quick else 16,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        eval_every=4,
    )
    captioner, processor = R2D2ForConditionalGeneration.from_pretrained(output), R2D2Processor.from_pretrained(output)
    rows = []
    for vendor in TEST:
        pairs = EmojiPairs([vendor])
        images = [pairs.image(index) for index in range(len(pairs))]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        for beams in (1, 3):
            captions = processor.post_process_image_text_to_text(
                captioner.eval().generate(pixel_values=pixels, num_beams=beams)
            )
            metrics, _ = captioning_metrics(captions, [[name] for name in pairs.names()])
            search = "greedy" if beams == 1 else f"{beams} beams"
            rows.append(_row("captions", vendor, f"exactly the name, {search}", None, metrics["exact_match"]))
            rows.append(_row("captions", vendor, f"CIDEr-D (0 to 10), {search}", None, metrics["cider"]))
    return rows, {"caption": f"{trained}, {seconds:.0f} s"}, []


def _row(part: str, vendor: str, measure: str, before: float | None, after: float) -> dict[str, Any]:
    return {"part": part, "vendor": vendor, "measure": measure, "before": before, "after": after}


PARTS: dict[str, Callable] = {"lora": lora, "matching": matching, "caption": caption}


def main(argv: list[str] | None = None) -> int:
    """Run the parts, print, save."""
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", type=Path, default=DEMO_MODEL, help="the demo's model")
    options = parser.parse_args(argv)
    if not (options.model / "config.json").is_file():
        parser.error(f"{options.model} holds no model: `make demo` makes one, or name another with --model")
    torch.set_num_threads(1 if options.quick else options.threads)
    name = "finetuning_quick" if options.quick else "finetuning"
    rows, settings, checks = [], {"model": options.model.name}, []
    for part in options.only:
        found = PARTS[part](options.model, QUICK_TABLES / name, options.quick)
        rows += found[0]
        settings |= found[1]
        checks += found[2]
    table = Table(
        "finetuning",
        "Fine-tuning the demo's model",
        "The demo's model (300 emoji concepts) fine-tuned by the small-data preset and judged on Twitter's and "
        "Windows' drawings, which no training saw; in percent but CIDEr. Before: the demo's model as it is. New "
        "concepts: names it never read under pictures it never saw, from a gallery of 60 (chance 1.7 %).",
        COLUMNS,
        rows,
        settings,
        checks,
        notes=["Captions of the model before are not there: it has not learnt to write from left to right."],
        quick=options.quick,
    )
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
