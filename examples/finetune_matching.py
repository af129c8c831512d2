"""Fine-tune the ranker to tell whether a picture and a text belong together (ICM, IQM).

    python examples/finetune_matching.py --model runs/demo --data labelled.jsonl --label label --output runs/matching

Labelled pairs of your own carry 1 (match) or 0 in a column that --label names. Without labels all pairs are taken as
true ones, and negatives are drawn for them.
"""

import argparse

from transformers import pipeline

from modeling_r2d2.finetuning import FinetuningSettings, finetune
from modeling_r2d2.processing.datasets import load_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of an R2D2 with a ranker")
    parser.add_argument("--data", required=True, help="pairs in any format that load_pairs reads")
    parser.add_argument("--validation", help="validation pairs, in the same format")
    parser.add_argument("--label", help="column of labels")
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()

    columns = {"label": options.label} if options.label else None
    pairs = load_pairs(options.data, columns=columns)
    validation = load_pairs(options.validation, columns=columns) if options.validation else None
    settings = FinetuningSettings.from_preset(
        "matching",
        options.output,
        "small",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
    )
    finetune(options.model, pairs, settings, validation, print_line=print)

    match = pipeline("image-text-matching", model=options.output)
    image = pairs.image(0)
    for text in (pairs.texts(0)[0], pairs.texts(len(pairs) - 1)[0]):
        print(f"{text}: {match((image, text))['match_probability']:.2f}")


if __name__ == "__main__":
    main()
