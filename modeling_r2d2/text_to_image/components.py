"""Where the parts of a text-to-image pipeline come from, and which of them train."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from transformers import BertConfig, BertModel

from ..inference.loading import load_component, one_line_errors
from ..model.modeling_r2d2 import R2D2Model
from ..model.pipeline_text_to_image import R2D2TextToImagePipeline

_UNET_LORA = ["to_q", "to_k", "to_v", "to_out.0"]
_TEXT_LORA = ["query", "key", "value"]


def plain_text_encoder(model: R2D2Model) -> BertModel:
    """The text tower as a plain `BertModel` with the same last hidden states, which loads without this package.

    A `BertModel` has a pooler that the tower lacks; it is zero and read by nothing.

    Raises:
        ValueError: a text tower that is no BERT.
    """
    if (kind := model.config.text_config.model_type) != "bert":
        raise ValueError(f"images are made from the states of a BERT, and this text tower is a {kind!r}")
    config = BertConfig.from_dict(model.config.text_config.to_dict())
    encoder = BertModel._from_config(config, dtype=model.dtype)
    missing, unexpected = encoder.load_state_dict(model.text_model.state_dict(), strict=False)
    if unexpected or any(not name.startswith("pooler.") for name in missing):
        raise ValueError(f"the text tower is no BertModel: it lacks {missing}, and has {unexpected} too much")
    for parameter in encoder.pooler.parameters():
        nn.init.zeros_(parameter)
    return encoder.eval()


def is_own_pipeline(folder: str | Path) -> bool:
    """Whether a pipeline folder already reads prompts by a BERT, as ours do."""
    index = Path(folder) / "model_index.json"
    return index.is_file() and "BertModel" in json.loads(index.read_text(encoding="utf-8")).get("text_encoder", [])


def adapt_pretrained(source: str | Path, text_encoder: BertModel, tokenizer: Any) -> R2D2TextToImagePipeline:
    """A Stable-Diffusion-shaped checkpoint with the Chinese text encoder in place of its own.

    UNet and VAE are the checkpoint's; between text states and cross-attention stands a new projection
    (`encoder_hid_proj`), so nothing the checkpoint has learned is lost. Train the projection and cross-attention
    first (`train="cross_attention"`), until then prompts mean nothing.

    Args:
        source: folder or Hub name with `unet`, `scheduler` and, in latent space, `vae`.

    Raises:
        ValueError: a UNet that needs more than text states (SDXL), or a scheduler of another kind (flow matching).
    """
    with one_line_errors(source, DDIMScheduler):
        scheduler_config = DDIMScheduler.load_config(source, subfolder="scheduler")
    if "FlowMatch" in scheduler_config.get("_class_name", ""):
        raise ValueError(f"{source}: {scheduler_config['_class_name']} is flow matching; a DDPM-like one is needed")
    old = load_component(UNet2DConditionModel, source, "unet")
    if old.config.addition_embed_type not in (None, "text") or old.config.class_embed_type is not None:
        raise ValueError(
            f"{source}: its UNet asks for more than text states (addition_embed_type "
            f"{old.config.addition_embed_type!r}, class_embed_type {old.config.class_embed_type!r})"
        )
    if old.config.encoder_hid_dim is not None:
        raise ValueError(f"{source}: its UNet projects text states of {old.config.encoder_hid_dim} already")
    config = {**old.config, "encoder_hid_dim": text_encoder.config.hidden_size, "encoder_hid_dim_type": "text_proj"}
    unet = UNet2DConditionModel.from_config(config)
    missing, unexpected = unet.load_state_dict(old.state_dict(), strict=False)
    if unexpected or set(missing) != {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}:
        raise ValueError(f"{source}: unused weights {unexpected}, missing weights {missing}")
    vae = None
    if unet.config.in_channels != 3:
        vae = load_component(AutoencoderKL, source, "vae")
    return R2D2TextToImagePipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler.from_config(scheduler_config),
        vae=vae,
    )


def choose_trained(pipeline: R2D2TextToImagePipeline, train: str, text_encoder: str, lora_rank: int) -> None:
    """Set `requires_grad`, and add LoRA adapters where they are asked for.

    Args:
        train: "all", "cross_attention" (with the text projection) or "lora" (with it too), of the UNet.
        text_encoder: "frozen", "lora" or "all".

    Raises:
        ValueError: cross-attention of a UNet that has none.
    """
    unet, encoder = pipeline.unet, pipeline.text_encoder
    if pipeline.vae is not None:
        pipeline.vae.requires_grad_(False)
    unet.requires_grad_(train == "all")
    encoder.requires_grad_(text_encoder == "all")
    encoder.pooler.requires_grad_(False)
    if train != "all":
        for name, parameter in unet.named_parameters():
            projects = name.startswith(("encoder_hid_proj.", "add_embedding."))
            parameter.requires_grad_(projects or (train == "cross_attention" and ".attn2." in name))
        if train == "cross_attention" and not any(p.requires_grad for p in unet.parameters()):
            raise ValueError("this UNet has no cross-attention to train")
    for wanted, module, targets in ((train, unet, _UNET_LORA), (text_encoder, encoder, _TEXT_LORA)):
        if wanted == "lora":
            from peft import LoraConfig

            module.add_adapter(
                LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=targets, init_lora_weights="gaussian")
            )


def merge_lora(module: UNet2DConditionModel | BertModel) -> int:
    """Add the adapters into the weights they adapt and take them out again, in place.

    Returns:
        how many layers had one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted: list[tuple[str, Any]] = [
        (name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)
    ]
    for name, layer in adapted:
        with torch.no_grad():
            layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    if adapted:
        module._hf_peft_config_loaded = False
        if hasattr(module, "peft_config"):
            del module.peft_config
    return len(adapted)
