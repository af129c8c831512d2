"""Models that are evaluated: ours of every kind, and dual encoders of others where they would be judged rightly."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from ..inference.encoding import encode_texts, evaluating
from ..inference.folders import OWN_TYPES
from ..inference.loading import config_values, is_dual_encoder, load_processor, load_whole
from ..model.image_classification_r2d2 import R2D2ForImageClassification
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..model.two_towers_r2d2 import require_ranker

if TYPE_CHECKING:
    from .settings import EvaluationSettings

#: One that is trimmed, and one that it is padded beside.
_SHORT, _LONG = "猫", "cat 两只很大的白猫和一条小狗在红色的大树下面睡觉"
#: Cosine of a text alone with the same beside a longer one: rounding is all that may differ.
_SAME = 0.999


def load_model(place: str, settings: EvaluationSettings) -> tuple[Any, Any]:
    """Model, in evaluation mode on `settings.device`, and processor; for classification a fine-tuned classifier too.

    Raises:
        ValueError: matching or two stages asked of a model without a ranker, weights are missing, or a foreign model
            that would be judged wrongly; says which.
    """
    foreign = is_dual_encoder(place)
    if settings.task == "captioning":
        from ..model.captioning_r2d2 import R2D2ForConditionalGeneration

        kind: Any = R2D2ForConditionalGeneration
    elif settings.task == "classification" and is_classifier(place):
        kind = R2D2ForImageClassification
    else:
        kind = R2D2Model if foreign else AutoModel
    model = load_whole(kind, place).eval().to(settings.device)
    processor = load_processor(R2D2Processor if foreign else AutoProcessor, place)
    refuse_foreign(model, processor, place)
    if settings.two_stage:
        require_ranker(model.config, "the second stage", "leave --two-stage out")
    elif settings.task == "matching":
        require_ranker(model.config, instead="evaluate it with task retrieval")
    if settings.task == "captioning" and model.generation_config.bos_token_id is None:
        model.set_special_tokens(processor.tokenizer)
    return model, processor


def is_classifier(place: str | PathLike) -> bool:
    """Whether a folder or Hub name holds a fine-tuned classifier of pictures."""
    return R2D2ForImageClassification.__name__ in (config_values(place).get("architectures") or ())


@torch.no_grad()
def refuse_foreign(model: Any, processor: Any, place: str | PathLike) -> None:
    """Refuse a foreign model that is no dual encoder, or whose texts mean something else without their padding.

    Texts are encoded here in batches trimmed to their longest. A model that reads its padding was trained on texts
    padded to the full length, and trimmed ones find less. (CLIP, Chinese-CLIP, SigLIP and AltCLIP load as R2D2, with
    the padding that they need.)

    Raises:
        ValueError: names the model's class and what is wrong.
    """
    if model.config.model_type in OWN_TYPES:
        return
    name = f"{place} is a {type(model).__name__}"
    ours = "R2D2, PRD2, Wukong and BriVL are evaluated here, and dual encoders that compare as they do"
    if not all(hasattr(model, method) for method in ("get_image_features", "get_text_features")):
        raise ValueError(f"{name}, which has no embeddings of images and texts: {ours}")
    padded = processor(text=[_SHORT, _LONG], padding=True, return_tensors="pt")
    if "attention_mask" not in padded:
        raise ValueError(f"{name}, whose processor does not tell texts from padding (no attention_mask): {ours}")
    with evaluating(model):
        inputs = {key: padded[key].to(model.device) for key in ("input_ids", "attention_mask")}
        beside: Tensor = model.get_text_features(**inputs).pooler_output[0].float()
        alone = encode_texts(model, processor, [_SHORT], keep_states=False, device="cpu").embeds[0]
    if torch.cosine_similarity(beside.cpu(), alone, dim=-1) < _SAME:
        raise ValueError(
            f"{name}, whose embedding of a text depends on its padding, which is trimmed here: its figures would be "
            f"wrong. {ours}"
        )


__all__ = ["is_classifier", "load_model", "refuse_foreign"]
