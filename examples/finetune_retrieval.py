"""Fine-tune for retrieval on a user's own pairs, by the small-data preset.

    python examples/finetune_retrieval.py --model runs/demo --data pairs.jsonl --output runs/mine

A line of pairs.jsonl is {"image": "0001.jpg", "text": "一只小狗在草地上"}. A tenth of the pictures is set aside: the
run stops when they are no longer found better, and keeps the best weights.
"""

import argparse

from modeling_r2d2.finetuning import FinetuningSettings, finetune, split_validation
from modeling_r2d2.processing.datasets import load_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub name of an R2D2")
    parser.add_argument("--data", required=True, help="pairs in any format that load_pairs reads")
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()

    pairs = load_pairs(options.data)
    training, validation = (pairs.select(rows) for rows in split_validation(pairs, 0.1, pairs.image_ids()))
    settings = FinetuningSettings.from_preset(
        "retrieval",
        options.output,
        "small",
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
    )
    trainer, _ = finetune(options.model, training, settings, validation, print_line=print)
    print(f"best mean recall on {len(validation)} validation pairs: {trainer.state.best_metric:.1f} %")


if __name__ == "__main__":
    main()
