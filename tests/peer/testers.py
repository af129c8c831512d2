"""Tiny models and inputs in the shape that the library's test mixins ask for."""

import torch
from tests.test_modeling_common import floats_tensor, ids_tensor, random_attention_mask

from modeling_r2d2 import BriVLConfig, R2D2Config

HIDDEN_SIZE, LAYERS, HEADS, VOCABULARY = 32, 2, 4, 99
IMAGE_SIZE, PATCH_SIZE = 32, 8
SIZES = {
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 37,
}
TEXT_CONFIG = {
    **SIZES,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
VIT_CONFIG = {**SIZES, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "attention_dropout": 0.1}
RESNET_CONFIG = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16, 24],
    "depths": [1, 1],
    "layer_type": "basic",
}
SWIN_CONFIG = {
    "model_type": "swin",
    "image_size": IMAGE_SIZE,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 2,
}


#: Of BriVL's image tower: a map of 4 × 4.
EFFICIENTNET_CONFIG = {
    "image_size": IMAGE_SIZE,
    "width_coefficient": 0.025,
    "depth_coefficient": 1.0,
    "depth_divisor": 4,
    "in_channels": [32, 320, 320],
    "out_channels": [320, 320, 480],
    "kernel_sizes": [3, 3, 3],
    "strides": [1, 2, 2],
    "num_block_repeats": [1, 1, 1],
    "expand_ratios": [1, 2, 2],
    "hidden_dim": HIDDEN_SIZE,
    "transformer_config": dict(SIZES),
    "region_grid": 2,
    "box_grid": 2,
}


class R2D2ModelTester:
    """Configuration and inputs of the composite models."""

    batch_size = 6
    seq_length = 7
    is_training = True
    hidden_size = HIDDEN_SIZE
    num_hidden_layers = LAYERS
    num_attention_heads = HEADS
    vocab_size = VOCABULARY
    text_config = TEXT_CONFIG

    def __init__(self, parent, vision_config: dict = VIT_CONFIG, ranker: bool = True):
        self.parent = parent
        self.vision_config = vision_config
        self.ranker = ranker

    def get_config(self) -> R2D2Config:
        return R2D2Config(
            vision_config=dict(self.vision_config),
            text_config=dict(self.text_config),
            cross_encoder_config=dict(SIZES) if self.ranker else None,
            projection_dim=24,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[R2D2Config, dict]:
        # the resizing tests take up to 15 tokens off the vocabulary, and know of no ids but `input_ids`
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 15)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": random_attention_mask([self.batch_size, self.seq_length]),
            "pixel_values": floats_tensor([self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE]),
            **self.extra_inputs(input_ids),
        }
        return self.get_config(), inputs

    def extra_inputs(self, input_ids: torch.Tensor) -> dict:
        return {}


class R2D2LossTester(R2D2ModelTester):
    """With the loss of pre-ranking."""

    def extra_inputs(self, input_ids):
        return {"return_loss": True}


class BriVLLossTester(R2D2LossTester):
    """The same of BriVL."""

    def get_config(self):
        return BriVLConfig(
            vision_config=dict(EFFICIENTNET_CONFIG),
            text_config={**TEXT_CONFIG, "transformer_config": dict(SIZES)},
            projection_dim=24,
            max_text_length=12,
        )


class R2D2ImageTextMatchingTester(R2D2ModelTester):
    """With the labels of image-text matching."""

    def extra_inputs(self, input_ids):
        return {"labels": torch.arange(self.batch_size) % 2}


class R2D2PreTrainingTester(R2D2ModelTester):
    """With the batch of the pre-training collator."""

    def extra_inputs(self, input_ids):
        masked = torch.zeros_like(input_ids, dtype=torch.bool)
        masked[:, 1::3] = True
        return {
            "image_ids": torch.arange(self.batch_size),
            "masked_input_ids": input_ids.masked_fill(masked, 3),
            "mlm_labels": input_ids.masked_fill(~masked, -100),
            "return_loss": True,
        }


class R2D2TextModelTester:
    """Configuration and inputs of the text tower alone."""

    batch_size = 6
    seq_length = 7
    is_training = False
    hidden_size = HIDDEN_SIZE
    num_hidden_layers = LAYERS
    num_attention_heads = HEADS
    vocab_size = VOCABULARY

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        from modeling_r2d2 import R2D2TextConfig

        return R2D2TextConfig(**TEXT_CONFIG)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {
            "input_ids": ids_tensor([self.batch_size, self.seq_length], self.vocab_size),
            "attention_mask": random_attention_mask([self.batch_size, self.seq_length]),
        }
