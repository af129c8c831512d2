"""Tiny pipelines, in pixel and in latent space, that the tests of text-to-image share."""

import pytest
import torch

pytest.importorskip("diffusers")  # of the extra [diffusers]
pytest.importorskip("peft")

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from modeling_r2d2 import R2D2TextToImagePipeline
from modeling_r2d2.text_to_image.components import plain_text_encoder
from tests.helpers import tiny_model, tiny_processor


def tiny_unet(seed: int = 0, **changes) -> UNet2DConditionModel:
    """8 × 8, with cross-attention at 4 × 4."""
    config = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(**{**config, **changes})
        # the last layer begins near zero: without this, pictures would hardly depend on the prompt
        for parameter in unet.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(2.0)
    return unet.eval()


def tiny_vae(seed: int = 0) -> AutoencoderKL:
    """Two pixels a latent, four channels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
        ).eval()


def tiny_scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")


def tiny_pipeline(latent: bool = False, ranker: bool = False, **unet_changes) -> R2D2TextToImagePipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = tiny_model(), tiny_processor()
    channels = {"in_channels": 4, "out_channels": 4} if latent else {}
    pipeline = R2D2TextToImagePipeline(
        text_encoder=plain_text_encoder(model),
        tokenizer=processor.tokenizer,
        unet=tiny_unet(**{**channels, **unet_changes}),
        scheduler=tiny_scheduler(),
        vae=tiny_vae() if latent else None,
        ranker=model if ranker else None,
        ranker_processor=processor if ranker else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipeline():
    return tiny_pipeline()


@pytest.fixture(params=["pixel", "latent"])
def either_pipeline(request):
    return tiny_pipeline(latent=request.param == "latent")
