"""Make a captioner of a pre-trained R2D2, and caption pictures with it.

    python examples/caption_images.py --model runs/demo --data pairs.jsonl --output runs/captioner cat.png dog.png

With a captioner at hand, `--captioner runs/captioner` skips the training. Captioning is this project's own extension:
the paper names the task and publishes no method.
"""

import argparse

from modeling_r2d2 import R2D2ForConditionalGeneration, R2D2Processor
from modeling_r2d2.finetuning import FinetuningSettings, finetune
from modeling_r2d2.inference.loading import load_processor, load_whole
from modeling_r2d2.processing import open_image
from modeling_r2d2.processing.datasets import load_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--model", help="folder or Hub name of a pre-trained R2D2")
    parser.add_argument("--data", help="pairs to learn captions from")
    parser.add_argument("--output", help="folder of the captioner to be made")
    parser.add_argument("--captioner", help="folder of a captioner that is there")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()

    if options.captioner is None:
        settings = FinetuningSettings.from_preset(
            "caption",
            options.output,
            "small",
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
        )
        finetune(options.model, load_pairs(options.data), settings, print_line=print)
    folder = options.captioner or options.output
    model, processor = load_whole(R2D2ForConditionalGeneration, folder), load_processor(R2D2Processor, folder)
    images = [open_image(path) for path in options.images]
    tokens = model.generate(**processor(images=images, return_tensors="pt"), num_beams=3)
    for path, caption in zip(options.images, processor.post_process_image_text_to_text(tokens), strict=True):
        print(f"{path}: {caption}")


if __name__ == "__main__":
    main()
