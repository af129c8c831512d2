"""All benchmarks, one after another, each in a process of its own; then the index of their tables.

python -m benchmarks [--quick] [--only image_encoding text_encoding]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLES = HERE.parent / "docs" / "benchmarks"
#: The long ones last; "demo_seeds" makes the models that those after it measure with.
BENCHMARKS = (
    "image_encoding",
    "text_encoding",
    "negatives",
    "token_similarity",
    "r2d2_step",
    "distillation_cost",
    "ranker_cost",
    "grad_cache",
    "indexing",
    "data_loading",
    "demo_seeds",
    "ranking",
    "vector_search",
    "calibration",
    "export",
    "finetuning",
    "evaluation",
    "tuning",
    "ablation",
    "noise",
    "systems",
    "warm",
    "frozen_towers",
    "text_to_image",
)
#: Tables by another name than the script's.
TABLE_NAMES = {
    "ablation": ("ablation_steps", "ablation_time"),
    "tuning": ("tuning", "tuning_demo"),
    "systems": ("systems_steps", "systems_time"),
    "warm": (
        *("warm_scenes", "warm_names", "warm_concepts"),
        *("warm_wrong_captions_clean_towers", "warm_wrong_captions_noisy_towers"),
    ),
}


def write_index(folder: Path) -> None:
    """README.md of the tables' folder: every claim with its figure and a link to its table."""
    lines = ["# Benchmarks", "", "Written by `make bench`; every table names its machine.", ""]
    lines += ["| claim | measured | wanted | |", "|---|---:|---:|---|"]
    for name in (table for script in BENCHMARKS for table in TABLE_NAMES.get(script, (script,))):
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        for check in json.loads(file.read_text(encoding="utf-8"))["checks"]:
            sense = "≥" if check["sense"] == ">=" else check["sense"]
            measured = f"{check['value']:.4g} | {sense} {check['wanted']:g} | {'met' if check['met'] else 'missed'}"
            lines.append(f"| [{check['what']}]({name}.md) | {measured} |")
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run them; the exit status is 1 if one failed or missed its claim, and the others run all the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: do they run?")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args(argv)
    failed = []
    for name in options.only:
        command = [sys.executable, str(HERE / f"{name}.py")] + ["--quick"] * options.quick
        if subprocess.run(command).returncode:
            failed.append(name)
    if not options.quick:
        write_index(TABLES)
    if failed:
        print(f"failed, or missed a wanted figure: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
