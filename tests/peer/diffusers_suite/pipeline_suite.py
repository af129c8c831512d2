"""Collected by `run.py` in this folder only: needs the tests of a diffusers checkout on the path."""

import diffusers.pipelines
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tests.pipelines.testing_utils.common import BasePipelineTesterConfig, PipelineTesterMixin
from tests.pipelines.testing_utils.lora import TEXT_ENCODER_TARGET_MODULES, LoraTesterMixin, UNetLoraTesterMixin
from transformers import BertConfig, BertModel, BertTokenizer

from modeling_r2d2 import R2D2TextToImagePipeline

# one of the tests looks the class up there, to read the names that `encode_prompt` returns
diffusers.pipelines.R2D2TextToImagePipeline = R2D2TextToImagePipeline
# their table of text encoders knows CLIP alone
TEXT_ENCODER_TARGET_MODULES["bert"] = ["query", "key", "value"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *("##" + letter for letter in LETTERS),
    *"一只猫的",
]


class R2D2TextToImageConfig(BasePipelineTesterConfig):
    """A tiny pipeline in pixel space."""

    pipeline_class = R2D2TextToImagePipeline
    required_input_params_in_call_signature = frozenset(
        ["prompt", "height", "width", "guidance_scale", "negative_prompt", "prompt_embeds", "negative_prompt_embeds"]
        + ["cross_attention_kwargs"]
    )
    batch_input_params = frozenset(["prompt", "negative_prompt"])
    callback_cfg_params = frozenset(["prompt_embeds"])
    output_shape = (3, 8, 8)

    def get_dummy_components(self):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=16,
        )
        tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)})
        tokenizer.model_max_length = 16
        return {
            "text_encoder": BertModel(config).eval(),
            "tokenizer": tokenizer,
            "unet": unet.eval(),
            "scheduler": DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
            "vae": None,
            "ranker": None,
            "ranker_processor": None,
        }

    def get_dummy_inputs(self):
        return {
            "prompt": "a cat 一只猫的",
            "generator": self.get_generator(0),
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "output_type": "pt",
        }


class TestR2D2TextToImagePipeline(R2D2TextToImageConfig, PipelineTesterMixin):
    """The common tests."""


class TestR2D2TextToImageLora(R2D2TextToImageConfig, LoraTesterMixin, UNetLoraTesterMixin):
    """The tests of LoRA adapters, of UNet and text encoder."""
