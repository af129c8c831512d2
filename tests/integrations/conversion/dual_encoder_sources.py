"""Tiny dual encoders of transformers with random weights, saved with the tokenizers and processors of their kind."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessorPil,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GemmaTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    XLMRobertaTokenizer,
)

from tests.helpers import CHARACTERS, SPECIAL_TOKENS
from tests.tiny import TEXT, VIT

SIDE = 32
SQUARE = {"height": SIDE, "width": SIDE}
CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
LATIN = "abcxyz123"
#: Kinds of sources; a SigLIP 2 of a fixed size is a SigLIP with another tokenizer.
KINDS = ("chinese_clip", "clip", "siglip", "siglip2", "altclip")


def bert_tokenizer() -> BertTokenizer:
    tokens = [*SPECIAL_TOKENS, *CHARACTERS, *(mark + letter for letter in LATIN for mark in ("", "##"))]
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])


def gemma_tokenizer() -> GemmaTokenizer:
    special, pieces = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), f"▁{CHARACTERS}{LATIN}"
    tokens = [*special, *pieces, *(f"<0x{value:02X}>" for value in range(256))]
    return GemmaTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        padding_side="right",
        model_input_names=["input_ids"],
    )


def roberta_tokenizer() -> XLMRobertaTokenizer:
    special = ("<s>", "<pad>", "</s>", "<unk>")
    pieces = [(piece, -2.0) for piece in f"▁{CHARACTERS}{LATIN}"]
    return XLMRobertaTokenizer(vocab=[*((token, 0.0) for token in special), *pieces, ("<mask>", 0.0)])


def build(kind: str, vocab_size: int | None = None, **settings: Any) -> tuple[Any, Any]:
    """Model, in evaluation mode, and processor. `settings` are of the configuration; `vocab_size` that of another
    tokenizer, for a SigLIP."""
    torch.manual_seed(0)
    vision = {**VIT, "image_size": SIDE, "patch_size": 16}
    words = {**TEXT, "max_position_embeddings": 40}
    if kind == "chinese_clip":
        tokenizer = bert_tokenizer()
        text = {**words, "vocab_size": len(tokenizer)}
        config = ChineseCLIPConfig(vision_config=vision, text_config=text, projection_dim=16, **settings)
        model, images = ChineseCLIPModel(config), ChineseCLIPImageProcessorPil(size=SQUARE, do_center_crop=False)
        processor = ChineseCLIPProcessor(images, tokenizer)
    elif kind == "clip":
        tokenizer = clip_tokenizer()
        text = {**words, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=16, **settings)
        model, processor = CLIPModel(config), CLIPProcessor(CLIPImageProcessorPil(**CROPPED), tokenizer)
    elif kind == "altclip":
        tokenizer = roberta_tokenizer()
        text = {**words, "vocab_size": len(tokenizer), "project_dim": 20, "pad_token_id": 1}
        config = AltCLIPConfig(vision_config=vision, text_config=text, projection_dim=16, **settings)
        model, processor = AltCLIPModel(config), AltCLIPProcessor(CLIPImageProcessorPil(**CROPPED), tokenizer)
    else:
        tokenizer = gemma_tokenizer() if kind == "siglip2" else bert_tokenizer()
        text = {**words, "vocab_size": vocab_size or len(tokenizer), "max_position_embeddings": 16}
        config = SiglipConfig(vision_config={**vision, "hidden_size": 32}, text_config=text, **settings)
        model, processor = SiglipModel(config), SiglipProcessor(SiglipImageProcessorPil(size=SQUARE), tokenizer)
        model.logit_scale.data.fill_(4.7)
        model.logit_bias.data.fill_(-12.9)
    if kind in ("chinese_clip", "clip", "altclip"):
        model.logit_scale.data.fill_(4.6)
    for parameter in model.parameters():  # random weights that give embeddings which differ
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    return model.eval(), processor


def save(folder: Path, kind: str, **settings: Any) -> Path:
    """A folder of a source."""
    model, processor = build(kind, **settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def own_inputs(kind: str, processor: Any, images: list, texts: list[str]) -> dict[str, torch.Tensor]:
    """Images and texts as the source's own documentation says to prepare them."""
    if kind in ("siglip", "siglip2"):  # padded to the full length, which is read: no mask
        options = {"padding": "max_length", "truncation": True, "max_length": 16}
        encoded = processor(images=images, text=texts, return_tensors="pt", **options)
        return {name: encoded[name] for name in ("input_ids", "pixel_values")}
    return dict(processor(images=images, text=texts, return_tensors="pt", padding=True))
