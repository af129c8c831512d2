"""CLIP, FILIP, Wukong, BriVL, PRD2 and R2D2 side by side on the demo set: at equal optimizer steps, and at equal time.

    python benchmarks/systems.py [--quick] [--seeds 0 1 2] [--study steps|time|tune] [--systems …] [--part 0/2]

Every system is a recipe of one trainer, on the same pairs, pictures and image tower. Equal time: each gets as many
steps as fit into the time that R2D2 takes. "tune" runs the free choices of BriVL, Wukong and R2D2, Samsung held out.
Resumes cell by cell; `--part i/n` runs every n-th cell and draws nothing.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ablation import MOMENTUM, TARGETS, VARIANTS, _step_of, seeds_line, spread
from cells import Cell, mean_recall, recall, study_folder, write_result
from common import TABLES, Table, add_part, arguments, finish, interleave, median
from r2d2_step import batch_of
from rich.console import Console
from token_similarity import resident_peak
from torch import nn
from transformers import set_seed

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor, WukongConfig, WukongModel
from modeling_r2d2.cli.demo_run import IMAGE_SIZE, TRAINING_VENDORS, demo_config, evaluate_demo
from modeling_r2d2.cli.demo_settings import TEST_VENDORS
from modeling_r2d2.distillation import DualQueueSettings, DualQueueState
from modeling_r2d2.evaluation.published import PUBLISHED, WUKONG_CLASSIFICATION, published_table
from modeling_r2d2.evaluation.zero_shot import ClassificationSet, classification_metrics, classify
from modeling_r2d2.processing.batch_augmentation import BatchAugmentation
from modeling_r2d2.processing.datasets.emoji import TEMPLATES, EmojiPairs
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from modeling_r2d2.training.pretraining import build_trainer, count_parameters
from modeling_r2d2.training.recipes import RECIPES, BriVLRecipe, Recipe
from modeling_r2d2.training.settings import PretrainingSettings
from modeling_r2d2.training.trainer import R2D2Trainer

BATCH = 150
#: Ten characters of a name in the longest template, [CLS] and [SEP].
LENGTH = 17
#: Image tokens that Wukong's reduction leaves of the demo tower's 9.
REDUCED_TOKENS = 4
#: Both chosen with Samsung held out, as REDUCED_TOKENS was: docs/benchmarks/systems_tune.md.
BRIVL = BriVLRecipe(momentum=0.995, dual_queue=DualQueueSettings(queue_size=150))
#: R2D2 as the package trains it, and with both ways of distillation, as the paper does: these as the ablation has
#: them, see docs/benchmarks/tuning.md.
SYSTEMS: dict[str, Recipe] = {
    "CLIP": RECIPES["clip"],
    "FILIP": RECIPES["filip"],
    "Wukong": RECIPES["wukong"],
    "BriVL": BRIVL,
    "PRD2": replace(VARIANTS["all"], ranker=False),
    "R2D2": RECIPES["r2d2"],
    "R2D2, TgD + FgD": VARIANTS["all"],
}
REFERENCE = "R2D2"
#: What "tune" tries: (system, recipe, reduced tokens).
CHOICES = [
    *(
        ("BriVL", replace(BRIVL, momentum=momentum, dual_queue=DualQueueSettings(size)), REDUCED_TOKENS)
        for size, momentums in ((150, (0.9, 0.995, 0.998)), (450, (0.9, 0.98, 0.995, 0.998)))
        for momentum in momentums
    ),
    *(("Wukong", RECIPES["wukong"], tokens) for tokens in (2, 4, 6)),
    ("CLIP", RECIPES["clip"], REDUCED_TOKENS),
    *(
        ("R2D2", replace(RECIPES["r2d2"], **changes), REDUCED_TOKENS)
        for changes in ({}, {"masking": True}, {"target_guided": TARGETS, "momentum": MOMENTUM}, {"negative_ramp": 0.0})
    ),
]
FIGURES = {
    "t→i": ("pre_ranking", "text_to_image"),
    "i→t": ("pre_ranking", "image_to_text"),
    "two-stage t→i": ("two_stage", "text_to_image"),
    "two-stage i→t": ("two_stage", "image_to_text"),
    "published score t→i": ("published", "text_to_image"),
    "published score i→t": ("published", "image_to_text"),
}


@dataclass(frozen=True)
class SystemCell(Cell):
    """A run of one system; the recipe's class is told by its name."""

    system: str = ""
    reduced_tokens: int = REDUCED_TOKENS


def system_model(system: str, recipe: Recipe, vocabulary: int, reduced_tokens: int = REDUCED_TOKENS) -> nn.Module:
    """The demo's ResNet, with the demo's BERT or, for FILIP and Wukong, a causal text tower of its size."""
    config = demo_config(vocabulary, recipe.ranker, rank_masked_texts=recipe.ranker and recipe.masking)
    config.text_config.max_position_embeddings = config.max_text_length = LENGTH
    if system not in ("FILIP", "Wukong"):
        return R2D2ForPreTraining._from_config(config, attn_implementation="eager")
    text = config.text_config
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    wukong = WukongConfig(
        vision_config=config.vision_config.to_dict(),
        text_config={
            **{name: getattr(text, name) for name in names},
            "max_position_embeddings": LENGTH,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        projection_dim=config.projection_dim,
        similarity="token-wise",
        token_reduction=reduced_tokens if system == "Wukong" else None,
        max_text_length=LENGTH,
    )
    return WukongModel._from_config(wukong, attn_implementation="eager")


def system_trainer(cell: SystemCell, output: Path) -> R2D2Trainer:
    """As the demo trains, with captions in five templates instead of plain names, so that prompts mean something."""
    set_seed(cell.seed)
    vendors = [vendor for vendor in TRAINING_VENDORS if vendor not in cell.held_out]
    pairs = EmojiPairs(vendors, templates=TEMPLATES, calibration="exclude")
    tokenizer = build_character_tokenizer(pairs.all_texts(), max_length=LENGTH)
    processor = R2D2Processor.build(tokenizer, image_size=IMAGE_SIZE, max_length=LENGTH)
    settings = PretrainingSettings(
        output=output,
        max_steps=cell.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=2e-3,
        weight_decay=0.1,
        recipe=cell.recipe,
        augmentation=BatchAugmentation(),
        channels_last=True,
        warmup_steps=0.08,
        seed=cell.seed,
        dataloader_num_workers=1,
        logging_steps=min(50, cell.steps),
        save_steps=0,
        arguments={"adam_beta2": 0.98, "optim": "adamw_torch_fused"},
    )
    model = system_model(cell.system, cell.recipe, len(tokenizer), cell.reduced_tokens)
    return build_trainer(model, processor, pairs, settings)


@torch.no_grad()
def top1(model: nn.Module, processor: R2D2Processor, gallery: EmojiPairs) -> float:
    """Zero-shot accuracy in percent among the 300 concepts, by prompts in the five templates."""
    images, labels = [gallery.image(place) for place in range(len(gallery))], list(range(len(gallery)))
    data = ClassificationSet(images, labels, [[name] for name in gallery.names()])
    scores = classify(model, processor, data, TEMPLATES, batch_size=100)
    return classification_metrics(scores, labels)[0]["top1"]


def run_system(cell: SystemCell, folder: Path) -> dict[str, Any]:
    """The cell's result, from its file or by training now: recall and accuracy in percent by vendor, seconds."""
    file = folder / f"{cell.key()}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    output = folder / f"{cell.key()}.run"
    shutil.rmtree(output, ignore_errors=True)
    trainer = system_trainer(cell, output)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    vendors, model, processor = {}, trainer.model.eval(), trainer.processing_class
    for vendor in cell.held_out:
        gallery = EmojiPairs([vendor])
        vendors[vendor] = evaluate_demo(model, processor, gallery).to_dict()
        vendors[vendor]["top1"] = top1(model, processor, gallery)
    result = {
        "cell": json.loads(json.dumps(asdict(cell), default=str)),
        "training_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "vendors": vendors,
        "last_log": next(entry for entry in reversed(trainer.state.log_history) if "loss" in entry),
    }
    write_result(file, result)
    shutil.rmtree(output, ignore_errors=True)
    return result


def run_systems(cells: list[SystemCell], folder: Path) -> list[dict[str, Any]]:
    """All of them in order, those that are there not again; a line for each."""
    console, results = Console(), []
    for number, cell in enumerate(cells, 1):
        results.append(run_system(cell, folder))
        figures = " ".join(f"{vendor} {mean_recall(results[-1], vendor):.1f}" for vendor in cell.held_out)
        run = f"{number}/{len(cells)} {choice_of(cell)}, seed {cell.seed}, {cell.steps} steps"
        console.print(f"{run}: {figures} ({results[-1]['training_seconds']:.0f} s)", highlight=False)
    return results


def choice_of(cell: SystemCell) -> str:
    """The system with its free choices."""
    if isinstance(cell.recipe, BriVLRecipe):
        return f"{cell.system} (queue {cell.recipe.dual_queue.queue_size}, m {cell.recipe.momentum})"
    if cell.system == "R2D2":
        return f"R2D2 ({cell.recipe}, hard from {cell.recipe.negative_ramp:g})"
    return f"{cell.system} ({cell.reduced_tokens} tokens)" if cell.system == "Wukong" else cell.system


def step_of(system: str, rows: int) -> tuple[nn.Module, Callable[[], None]]:
    """A model and one training step of it on random data of the demo's sizes."""
    recipe = SYSTEMS[system]
    torch.manual_seed(0)
    model = system_model(system, recipe, vocabulary=800).train()
    batch = batch_of(rows, range(3, LENGTH + 1))
    batch["pixel_values"] = torch.randn(rows, IMAGE_SIZE, IMAGE_SIZE, 3).permute(0, 3, 1, 2)
    if not recipe.masking:
        del batch["masked_input_ids"], batch["mlm_labels"]
    if isinstance(model, R2D2ForPreTraining) and not isinstance(recipe, BriVLRecipe):
        return model, _step_of(model, recipe, batch)
    model.temperature.requires_grad_(not isinstance(recipe, BriVLRecipe))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    state = None
    if isinstance(recipe, BriVLRecipe):
        state = DualQueueState(model, replace(recipe.dual_queue, queue_size=3 * rows), rows)

    def step() -> None:
        if state is None:
            loss = model(**batch, return_loss=True).loss
        else:
            state.keys(batch)
            outputs = model(**batch, return_loss=False)
            loss = state.loss(outputs.image_embeds, outputs.text_embeds)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if state is not None:
            state.commit(model, MOMENTUM)

    return model, step


def peak_memory(system: str, rows: int, threads: int) -> dict[str, float]:
    """In this process: the most bytes that model, optimizer, teacher and four steps add to what torch takes; and the
    trainable parameters."""
    torch.set_num_threads(threads)
    nn.functional.conv2d(torch.randn(8, 3, 8, 8), torch.randn(8, 3, 3, 3))  # what torch sets up on first use
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, _ = resident_peak()
    model, step = step_of(system, rows)
    for _ in range(4):
        step()
    return {"bytes": resident_peak()[1] - before, "parameters": count_parameters(model)}


def costs(folder: Path, rounds: int, rows: int) -> dict[str, dict[str, float]]:
    """Seconds per step, measured in turn, peak memory, each in a fresh process, and parameters of every system;
    measured once and kept beside the cells."""
    file = folder / "costs.json"
    if not file.is_file():
        seconds = interleave({name: step_of(name, rows)[1] for name in SYSTEMS}, rounds, warmup=3)
        found = {}
        for name in SYSTEMS:
            job = json.dumps({"system": name, "rows": rows, "threads": torch.get_num_threads()})
            done = subprocess.run([sys.executable, __file__, "--worker", job], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"peak memory of {name}: {done.stderr.strip()[-2000:]}")
            found[name] = {"seconds": median(seconds[name]), **json.loads(done.stdout)}
        write_result(file, found)
    return json.loads(file.read_text(encoding="utf-8"))


def plan(study: str, seeds: list[int], steps: int, found: dict[str, dict[str, float]]) -> dict[str, list[SystemCell]]:
    """The cells of a study, by system."""
    if study == "tune":
        cells = [
            SystemCell(recipe, 0, steps, ("samsung",), rank_masked_texts=False, system=system, reduced_tokens=tokens)
            for system, recipe, tokens in CHOICES
        ]
        return {choice_of(cell): [replace(cell, seed=seed) for seed in seeds] for cell in cells}
    planned = {}
    for name, recipe in SYSTEMS.items():
        share = found[REFERENCE]["seconds"] / found[name]["seconds"] if study == "time" else 1.0
        own = max(1, round(steps * share))
        masked = recipe.ranker and recipe.masking
        planned[name] = [SystemCell(recipe, seed, own, rank_masked_texts=masked, system=name) for seed in seeds]
    return planned


def table_of(study: str, results: dict[str, list[dict]], found: dict[str, dict[str, float]], quick: bool) -> Table:
    """A row per system and vendor."""
    rows = []
    first = next(iter(results.values()))
    for vendor in first[0]["vendors"]:
        for name, group in results.items():
            row = {"system": name, "vendor": vendor}
            for heading, (stage, way) in FIGURES.items():
                row[heading] = spread([recall(result, vendor, stage, way) for result in group])
            row["top-1"] = spread([result["vendors"][vendor]["top1"] for result in group])
            row["steps"] = group[0]["cell"]["steps"]
            if study != "tune":
                of = found[name]
                row |= {"s/step": of["seconds"], "MB": of["bytes"] / 1e6, "M param.": of["parameters"] / 1e6}
            rows.append(row)
    equal = {
        "steps": "The same number of optimizer steps.",
        "time": "The same time, by measured seconds per step.",
        "tune": "Chosen here, so that the test vendors decide nothing.",
    }[study]
    cost = {} if study == "tune" else {"s/step": ".3f", "MB": ".0f", "M param.": ".2f"}
    title = "Choices of BriVL, Wukong and R2D2, Samsung held out" if study == "tune" else f"Systems at equal {study}"
    return Table(
        f"systems_{study}",
        title,
        f"R@1 of retrieval (queries: plain names) and top-1 of zero-shot classification (prompts: five templates) in "
        f"percent, among 300 concepts (chance 0.3), on vendors never trained on; {seeds_line(len(first))}. "
        f"{equal} All systems train from random weights for minutes, on the same pairs and image "
        "tower; this says what their objectives do there, and nothing about the authors' models.",
        {"system": "", "vendor": "", **dict.fromkeys([*FIGURES, "top-1"], ""), "steps": "d", **cost},
        rows,
        {"seeds": len(first), "batch_size": BATCH, "text_tokens": LENGTH},
        notes=[
            "FILIP and Wukong have a causal text tower of the size of the others' BERT; Wukong's image tower is not "
            "locked, because there is no trained one to lock.",
            "MB: the most that model, gradients, optimizer, teacher and a step's states add to the process; M param.: "
            "trainable ones, without the teacher.",
        ],
        script="systems",
        quick=quick,
    )


def published() -> str:
    """The published full-scale figures as Markdown: a document of its own, never rows of the tables above."""
    sets = [*dict.fromkeys(row.data for row in PUBLISHED), *WUKONG_CLASSIFICATION]
    head = [
        "# Published figures of the systems",
        "",
        "From the papers, at full scale and with their own data, sizes and code. Nothing here was measured by this "
        "project, and nothing here can be compared with its tables on the demo set.",
        "",
    ]
    return "\n".join([*head, "\n\n".join(published_table(name) for name in sets), ""])


def draw(tables: dict[str, Table], path: Path) -> None:
    """Bars of every system with their deviations; one panel a study and vendor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = (("t→i", "#2a6fb5"), ("i→t", "#7fb0de"), ("two-stage t→i", "#d9822b"), ("top-1", "#5b9a68"))
    names = {"t→i": "text→image R@1", "i→t": "image→text R@1", "two-stage t→i": "two-stage text→image R@1"}
    figure, axes = pyplot.subplots(len(tables), len(TEST_VENDORS), figsize=(12, 3.6 * len(tables)), squeeze=False)
    for line, (study, table) in zip(axes, tables.items(), strict=True):
        for axis, vendor in zip(line, TEST_VENDORS, strict=True):
            rows = [row for row in table.rows if row["vendor"] == vendor]
            for number, (heading, color) in enumerate(bars):
                shown = [(place, row[heading]) for place, row in enumerate(rows) if row[heading] != "–"]
                means, deviations = zip(*(map(float, text.split(" ± ")) for _, text in shown), strict=True)
                places = [place + 0.2 * number for place, _ in shown]
                label = names.get(heading, "zero-shot top-1")
                axis.bar(places, means, 0.19, yerr=deviations, color=color, label=label, capsize=2)
            axis.set_xticks([place + 0.3 for place in range(len(rows))], [row["system"] for row in rows], fontsize=8)
            axis.set_title(f"{vendor}, equal {study}", fontsize=10, loc="left")
            axis.set_ylabel("%")
            axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(bars), loc="lower center")
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, draw, save."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--worker"]:
        print(json.dumps(peak_memory(**json.loads(argv[1]))))
        return 0
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--study", choices=["steps", "time", "tune"], nargs="+", default=["steps", "time"])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="these alone; draws nothing")
    add_part(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    folder = study_folder("systems", options.quick)
    seeds, steps = (options.seeds[:1], 2) if options.quick else (options.seeds, options.steps)
    found = costs(folder, 1 if options.quick else options.rounds, 8 if options.quick else BATCH)
    (part, parts), whole = options.part, options.part[1] == 1 and not options.systems
    tables, status = {}, 0
    for study in options.study:
        planned = plan(study, seeds, steps, found)
        groups = [group for name, group in planned.items() if not options.systems or name in options.systems]
        by_seed = [group[place] for place in range(len(seeds)) for group in groups]
        results = dict(zip(by_seed[part::parts], run_systems(by_seed[part::parts], folder), strict=True))
        if whole:
            of_study = {name: [results[cell] for cell in group] for name, group in planned.items()}
            tables[study] = table_of(study, of_study, found, options.quick)
            status |= finish(tables[study], options.tables)
    if whole:
        drawn = {study: table for study, table in tables.items() if study != "tune"}
        place = options.tables or (folder if options.quick else TABLES.parent / "images")
        if drawn:
            draw(drawn, place / "systems.png")
        text = options.tables or (folder if options.quick else TABLES)
        (text / "systems_published.md").write_text(published(), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
