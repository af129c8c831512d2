"""Writes `tests/data/checkpoint_vX_Y`: a tiny model as this release saves it, and what it computes.

Run once a minor release (`.venv/bin/python tests/compat/make_checkpoint.py`) and commit the folder; it is never
made again. `test_checkpoint.py` loads every such folder and compares, in this release and in all later ones.
The weights are random, only scaled up so that outputs differ visibly; they are nobody's trained weights.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import BertTokenizer

import modeling_r2d2
from modeling_r2d2 import R2D2Config, R2D2ForPreTraining, R2D2Model, R2D2Processor
from modeling_r2d2.model.losses_r2d2 import HardNegatives

DATA = Path(__file__).parent.parent / "data"
IMAGE_SIZE = 32
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["一只猫", "两只狗在草地上", "红色的花", "海"]


def images(size: tuple[int, int] | None = (IMAGE_SIZE, IMAGE_SIZE)) -> list[Image.Image]:
    """Four pictures of arithmetic, no file needed: cut to `size`, so that nothing resizes them, or as they are."""
    gradient = Image.linear_gradient("L")
    circle = Image.radial_gradient("L")
    images = [
        Image.merge("RGB", [gradient, circle, gradient.transpose(Image.Transpose.ROTATE_90)]),
        Image.merge("RGB", [circle, gradient, circle]).crop((0, 100, 200, 150)),
        circle.crop((100, 100, 160, 250)),
        Image.new("RGB", (40, 40), (30, 90, 200)),
    ]
    return [image if size is None else image.crop((0, 0, *size)) for image in images]


def outputs(folder: Path) -> dict:
    """Everything that a checkpoint must keep computing, as nested lists of plain numbers."""
    processor = R2D2Processor.from_pretrained(folder)
    batch = processor(images=images(), text=TEXTS, return_tensors="pt")
    model = R2D2Model.from_pretrained(folder).eval()
    pre_training = R2D2ForPreTraining.from_pretrained(folder).eval()
    pairs = len(TEXTS)
    masked = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    masked[:, 1] = True
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        pre_ranking = model(**inputs, return_loss=True)
        ranking = model.match(**inputs)
        losses = pre_training(
            **inputs,
            image_ids=torch.tensor([0, 1, 0, 2]),
            masked_input_ids=batch["input_ids"].masked_fill(masked, SPECIAL.index("[MASK]")),
            mlm_labels=batch["input_ids"].masked_fill(~masked, -100),
            hard_negatives=HardNegatives(
                image_index=torch.tensor([1, 2, 3, 0]),
                text_index=torch.tensor([3, 0, 1, 2]),
                valid=torch.ones(pairs, dtype=torch.bool),
            ),
        )
    resized = processor(images=images(size=None), return_tensors="pt")["pixel_values"]
    tensors = {
        "pixel_values": batch["pixel_values"][:, :, ::8, ::8],
        "resized_pixel_values": resized[:, :, ::8, ::8],
        "logits_per_image": pre_ranking.logits_per_image,
        "text_embeds": pre_ranking.text_embeds,
        "image_embeds": pre_ranking.image_embeds,
        "loss": pre_ranking.loss,
        "match_probability": ranking.match_probability,
        "text_match_logits": ranking.text_match_logits,
        "image_match_logits": ranking.image_match_logits,
        "loss_gcpr": losses.loss_gcpr,
        "loss_fgr": losses.loss_fgr,
        "loss_mlm": losses.loss_mlm,
    }
    return {"input_ids": batch["input_ids"].tolist(), **{name: t.double().tolist() for name, t in tensors.items()}}


def make(folder: Path):
    """Save the model and the processor of this release, then what they compute."""
    torch.manual_seed(0)
    vocabulary = [*SPECIAL, *sorted(set("".join(TEXTS)))]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    model = R2D2ForPreTraining(
        R2D2Config(
            vision_config={**SIZES, "image_size": IMAGE_SIZE, "patch_size": 16},
            text_config={**SIZES, "vocab_size": len(vocabulary), "max_position_embeddings": 16},
            cross_encoder_config=dict(SIZES),
            projection_dim=8,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            elif name != "temperature":
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    R2D2Processor.build(tokenizer, image_size=IMAGE_SIZE, max_length=16).save_pretrained(folder)
    for copy in folder.glob("*.py"):  # the code for trust_remote_code; here it comes from the package
        copy.unlink()
    (folder / "expected.json").write_text(json.dumps(outputs(folder)), encoding="utf-8")


if __name__ == "__main__":
    target = DATA / "checkpoint_v{}_{}".format(*modeling_r2d2.__version__.split(".")[:2])
    if target.exists():
        sys.exit(f"{target} exists: the checkpoint of a release is never made again")
    make(target)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1000:.0f} kB")
