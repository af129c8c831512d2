"""Teach a model new concepts by LoRA: train adapters, load them onto `AutoModel`, merge them.

    python examples/lora.py --model runs/demo --output runs/lora

The concepts are emoji that the demo never saw, in four vendors' drawings; a fifth vendor's decide when to stop, and
Twitter's are searched at the end.
"""

import argparse

from transformers import AutoModel, AutoProcessor

from modeling_r2d2.evaluation import evaluate_retrieval
from modeling_r2d2.finetuning import FinetuningSettings, LoRASettings, finetune, load_adapter, merge_adapter
from modeling_r2d2.inference.loading import load_processor, load_whole
from modeling_r2d2.processing.datasets.emoji import EmojiPairs, demo300_keys, emoji_concepts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--output", default="runs/lora")
    parser.add_argument("--concepts", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--dora", action="store_true")
    options = parser.parse_args()

    processor = load_processor(AutoProcessor, options.model)
    seen, unknown = set(demo300_keys()), processor.tokenizer.unk_token_id
    new = [c for c in emoji_concepts() if c.key not in seen and unknown not in processor.tokenizer(c.name)["input_ids"]]
    keys = [concept.key for concept in new[:: max(len(new) // options.concepts, 1)]][: options.concepts]
    training, validation, test = (
        EmojiPairs(vendors, concepts=keys)
        for vendors in (["apple", "facebook", "google", "joypixels"], ["samsung"], ["twitter"])
    )

    settings = FinetuningSettings.from_preset(
        "retrieval",
        options.output,
        "small",
        num_train_epochs=options.epochs,
        learning_rate=3e-3,
        eval_every=5,
        lora=LoRASettings(rank=16, dora=options.dora),
    )
    finetune(options.model, training, settings, validation, print_line=print)

    def recall(model) -> str:
        images = [test.image(index) for index in range(len(test))]
        result = evaluate_retrieval(model, processor, images, test.names())
        return f"text→image R@1 {result.pre_ranking['text_to_image_r1']:.1f} %"

    base = load_whole(AutoModel, options.model)
    print("before:", recall(base))
    adapted = load_adapter(base, f"{options.output}/adapter")
    print("with the adapter:", recall(adapted))
    print("merged:", recall(merge_adapter(adapted)))


if __name__ == "__main__":
    main()
