"""Fine-tune a classifier whose head begins as zero-shot classification, and classify pictures with it.

    python examples/classify_images.py --model runs/demo --data classes.jsonl --output runs/classes cat.png dog.png

The text of each pair is the name of its class: {"image": "0001.jpg", "text": "猫"}.
"""

import argparse

from transformers import pipeline

from modeling_r2d2.finetuning import FinetuningSettings, finetune
from modeling_r2d2.processing.datasets import load_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", required=True, help="folder or Hub name of an R2D2 or PRD2")
    parser.add_argument("--data", required=True, help="pairs whose text is the class, in any format of load_pairs")
    parser.add_argument("--validation", help="pairs of pictures that --data does not have")
    parser.add_argument("--prompts", nargs="+", default=["{}", "一张{}的图片"], help="of the classes' names")
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()

    settings = FinetuningSettings.from_preset(
        "classification",
        options.output,
        "small",
        prompts=tuple(options.prompts),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
    )
    validation = load_pairs(options.validation) if options.validation else None
    finetune(options.model, load_pairs(options.data), settings, validation, print_line=print)

    classify = pipeline("image-classification", model=options.output)
    for image in options.images:
        best = classify(image)[0]
        print(f"{image}: {best['label']} ({best['score']:.2f})")


if __name__ == "__main__":
    main()
