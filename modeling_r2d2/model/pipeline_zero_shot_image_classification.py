"""Zero-shot classification of pictures with Chinese labels.

This file travels with a saved pipeline, so it imports only torch, transformers and flat siblings.
"""

import re
from typing import Any

import torch
from transformers import Pipeline, ZeroShotImageClassificationPipeline

from .images_r2d2 import opening_of
from .pipeline_inputs import read_image, refuse_not_finite, tokenize
from .prompts_r2d2 import class_prompts
from .two_towers_r2d2 import require_ranker


class R2D2ZeroShotImageClassificationPipeline(ZeroShotImageClassificationPipeline):
    """transformers' `zero-shot-image-classification` for R2D2, Wukong and BriVL: the same call, with a Chinese prompt,
    labels cut to the model's length (the stock pipeline never cuts, and fails), pictures of any mode, every label
    encoded once a call whatever the number of pictures, and, on request, the ranker.

    ```python
    classify = pipeline("r2d2-zero-shot-image-classification", model=folder)
    classify("cat.jpg", candidate_labels=["猫", "狗"])       # [{"score": 0.98, "label": "猫"}, …]
    classify(["cat.jpg", "dog.jpg"], candidate_labels="猫，狗", batch_size=8)
    classify("cat.jpg", candidate_labels=["猫", "狗"], use_ranker=True)
    ```
    """

    model: Any  # an R2D2Model, a WukongModel or a BriVLModel, also one of remote code
    image_processor: Any
    tokenizer: Any

    # Every pipeline has a call, a `preprocess`, `_forward` and `postprocess` of its own signature.
    def __call__(  # type: ignore[override]
        self, image: Any = None, candidate_labels: list[str] | str | None = None, **kwargs
    ) -> list:
        """Score labels.

        Args:
            image: a PIL picture, path, URL or base64 string, a list of them, or a data set or generator.
            candidate_labels: a list, or one string with commas (，、, too) between the labels; may be given to
                the constructor instead.

        Keyword Args:
            hypothesis_template: with `{}` for the label; default 一张{}的图片. "{}" takes the labels as they are.
            use_ranker: score by the ranker: the match probability of each label on its own, so that they need not
                sum to 1 and none may be high. Default False: softmax over the labels of similarity / temperature, by
                cosine or, on a token-wise Wukong, token by token.
            timeout: seconds to wait for a URL.
            batch_size: pictures at a time.

        Returns:
            for each picture a list of `{"score", "label"}`, best first; the list alone for one picture.

        Raises:
            ValueError: no labels, a template without `{}`, a picture that cannot be read, `use_ranker` on a model
                without a ranker (PRD2, Wukong, BriVL).
        """
        if "images" in kwargs:
            image = kwargs.pop("images")
        if image is None:
            raise ValueError("zero-shot classification needs an image")
        if isinstance(image, list) and not image:
            return []
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        # what the labels come to is the same for every picture of the call
        parameters = {**self._label_parameters, **self._label_arguments(kwargs)}
        labels = _label_list(parameters.get("candidate_labels"))
        use_ranker = parameters.get("use_ranker", False)
        if use_ranker:
            require_ranker(self.model.config, "use_ranker")
        texts = self._encode_labels(labels, parameters.get("hypothesis_template", "一张{}的图片"))
        return Pipeline.__call__(self, image, labels=labels, texts=texts, use_ranker=use_ranker, **kwargs)

    def check_model_type(self, supported_models):
        """Any R2D2, Wukong or BriVL model will do, also one of remote code, which is on no list of supported models.

        Raises:
            ValueError: another model.
        """
        if self.model.config.model_type not in ("r2d2", "wukong", "brivl"):
            raise ValueError(
                f"{type(self).__name__} needs an R2D2 model, not {type(self.model).__name__} "
                f"of type {self.model.config.model_type!r} (a Wukong or BriVL model will do, too)"
            )

    @staticmethod
    def _label_arguments(kwargs: dict) -> dict:
        """Take out of `kwargs` what is about the labels."""
        names = ("candidate_labels", "hypothesis_template", "use_ranker")
        return {name: kwargs.pop(name) for name in names if name in kwargs}

    def _sanitize_parameters(self, tokenizer_kwargs=None, **kwargs):
        if not hasattr(self, "_label_parameters"):  # called by the constructor, with its own arguments
            self._label_parameters = self._label_arguments(kwargs)
        preprocess = {"timeout": kwargs["timeout"]} if "timeout" in kwargs else {}
        forward = {name: kwargs[name] for name in ("texts", "use_ranker") if name in kwargs}
        return preprocess, forward, {"labels": kwargs["labels"]} if "labels" in kwargs else {}

    @property
    def _is_wukong(self) -> bool:
        return self.model.config.model_type == "wukong"

    def _encode_labels(self, labels: list[str], template: str) -> dict[str, Any]:
        tokens = tokenize(self.tokenizer, self.model.config, class_prompts(labels, [template]))
        mask = tokens["attention_mask"].to(self.device)
        with self.device_placement(), torch.no_grad():
            if self._is_wukong:
                return {"classes": self.model.encode_classes(tokens["input_ids"].to(self.device), mask)}
            features = self.model.get_text_features(tokens["input_ids"].to(self.device), mask)
        return {"embeds": features.pooler_output, "states": features.last_hidden_state, "mask": mask}

    def preprocess(self, image, timeout=None):  # type: ignore[override]
        pil_image = read_image(image, timeout, **opening_of(self.image_processor))
        return self.image_processor(images=[pil_image], return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs, texts, use_ranker=False):  # type: ignore[override]
        if self._is_wukong:
            return {"scores": self.model.class_probabilities(model_inputs["pixel_values"], texts["classes"])}
        features = self.model.get_image_features(model_inputs["pixel_values"])
        if not use_ranker:
            image_embeds, text_embeds = (
                torch.nn.functional.normalize(embeds.float(), dim=-1)
                for embeds in (features.pooler_output, texts["embeds"])
            )
            logits = image_embeds @ text_embeds.t() / self.model.bounded_temperature()
            return {"scores": logits.softmax(dim=-1)}
        images, labels = len(features.last_hidden_state), len(texts["states"])
        output = self.model.rank(
            texts["states"],
            features.last_hidden_state,
            texts["mask"],
            text_index=torch.arange(labels, device=self.device).repeat(images),
            image_index=torch.arange(images, device=self.device).repeat_interleave(labels),
            cls_only=True,
        )
        return {"scores": output.match_probability.view(images, labels)}

    def postprocess(self, model_outputs, labels):  # type: ignore[override]
        refuse_not_finite(self.model, model_outputs["scores"])
        scores = model_outputs["scores"][0].tolist()
        return [
            {"score": score, "label": label}
            for score, label in sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])
        ]


def _label_list(labels: list[str] | str | None) -> list[str]:
    if isinstance(labels, str):
        labels = [label.strip() for label in re.split("[,，、]", labels)]
        labels = [label for label in labels if label]
    if not labels:
        raise ValueError("candidate_labels is empty: name at least one label")
    return list(labels)
