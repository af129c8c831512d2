"""Classification of pictures into fixed classes: a linear head on the image embeddings of pre-ranking.

An extension of this project; the head may begin as the text embeddings of prompts, and then starts where zero-shot
classification ends. This file travels to the Hub beside the weights.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_r2d2 import R2D2Config
from .modeling_r2d2 import R2D2PreTrainedModel
from .two_towers_r2d2 import normalize, projection, vision_tower


class R2D2ForImageClassification(R2D2PreTrainedModel):
    """Image tower, its projection, and a linear head on the L2-normalised embedding, divided by the temperature.

    logits = (W · normalize(embedding) + b) / τ; the classes are `config.id2label`. With W = the normalised text
    embeddings of one prompt a class and b = 0 these are the logits of zero-shot classification. Loads from any R2D2
    checkpoint; what it does not read is left behind.
    """

    _auto_class = "AutoModelForImageClassification"
    input_modalities = ["image"]
    main_input_name = "pixel_values"
    _keys_to_ignore_on_load_unexpected = [
        r"^(text_model|text_projection|image_joint_projection|text_image_encoder|image_text_encoder)\.",
        r"^(text_image_match_head|image_text_match_head|mlm_head|feature_heads)\.",
    ]

    def __init__(self, config: R2D2Config):
        super().__init__(config)
        self.vision_model = vision_tower(config.vision_config, config.vision_pooling == "pooler")
        self.vision_projection = projection(config.projection, config.vision_hidden_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init_value)))
        self.classifier = nn.Linear(config.projection_dim, cast(int, config.num_labels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The image tower's patch embeddings."""
        return self.vision_model.get_input_embeddings()

    def _auto_map(self) -> dict[str, str]:
        return {}  # its weights are no whole R2D2Model

    @torch.no_grad()
    def init_classifier(self, class_embeds: Tensor) -> None:
        """Begin as zero-shot classification.

        Args:
            class_embeds: (classes, D) text embeddings of a prompt of each class, or the mean over several; normalised
                here.

        Raises:
            ValueError: another shape than the head's.
        """
        if class_embeds.shape != self.classifier.weight.shape:
            raise ValueError(
                f"class_embeds is {tuple(class_embeds.shape)}, the head {tuple(self.classifier.weight.shape)}: one "
                "embedding a class is needed, in the order of config.id2label"
            )
        self.classifier.weight.copy_(normalize(class_embeds))
        self.classifier.bias.zero_()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Images (B, 3, H, W) -> `logits` (B, classes) float32; labels (B,) int64 give the mean cross-entropy.

        Raises:
            ValueError: no images.
        """
        if pixel_values is None:
            raise ValueError("a classifier of images reads pixel_values, which are missing")
        states, outputs = self._encode_images(pixel_values, **kwargs)
        embeds = normalize(self.vision_projection(self._pooled(states, outputs)))
        logits = self.classifier(embeds).float() / self.bounded_temperature()
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.get("attentions")
        )


__all__ = ["R2D2ForImageClassification"]
