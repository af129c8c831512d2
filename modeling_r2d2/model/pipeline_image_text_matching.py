"""Match probabilities of pictures and texts.

This file travels with a saved pipeline, so it imports only torch, transformers and flat siblings.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from transformers import Pipeline

from .images_r2d2 import opening_of
from .pipeline_inputs import read_image, refuse_not_finite, tokenize
from .two_towers_r2d2 import require_ranker


class R2D2ImageTextMatchingPipeline(Pipeline):
    """How well pictures and texts match, by R2D2's ranker: batches of (picture, text).

    Within a batch every distinct picture and text goes through its tower once, however many pairs it is in.

    ```python
    match = pipeline("image-text-matching", model=folder)
    match(("cat.jpg", "一只猫"))                      # {"match_probability": 0.97, "cosine": 0.41}
    match([("cat.jpg", "一只猫"), {"image": "cat.jpg", "text": "一条狗"}])
    match(image="cat.jpg", text=["一只猫", "一条狗"])   # one picture, several texts, or the other way round
    ```

    Raises:
        ValueError: at construction, a model without a ranker (PRD2).
    """

    model: Any  # an R2D2Model, also one of remote code
    image_processor: Any
    tokenizer: Any
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        require_ranker(self.model.config, "image-text matching")

    # Every pipeline has a call, a `preprocess`, `_forward` and `postprocess` of its own signature.
    def __call__(  # type: ignore[override]
        self,
        inputs: Any = None,
        *,
        image: Any = None,
        text: str | list[str] | None = None,
        batch_size: int | None = None,
        **kwargs,
    ) -> dict[str, float] | list[dict[str, float]] | Iterator[dict[str, float]]:
        """Match probabilities of pairs.

        Args:
            inputs: one pair, a tuple (picture, text) or a dictionary `{"image", "text"}`; or a list of pairs; or a
                data set or generator of pairs, which gives an iterator. A picture is what transformers'
                `load_image` takes: PIL image, path, URL, base64.
            image: instead of `inputs`, with `text`: both lists of one length, or one of them single and paired with all
                of the other.
            text: see `image`.
            batch_size: pairs at a time; default 32.
            kwargs: `timeout`, seconds to wait for a URL.

        Returns:
            for each pair `match_probability`, the mean of both encoders' probability of a match, and `cosine`, the
            score of pre-ranking; their sum is the authors' score of two-stage retrieval. An empty list for an empty
            list.

        Raises:
            ValueError: unequal numbers of pictures and texts, a picture that cannot be read.
            TypeError: what is no pair.
        """
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        parameters = (
            {**self._preprocess_params, **preprocess},
            {**self._forward_params, **forward},
            {**self._postprocess_params, **postprocess},
        )
        if inputs is None:
            pairs, single = _paired(image, text)
        elif image is not None or text is not None:
            raise ValueError("give pairs, or image= and text=, not both")
        elif isinstance(inputs, dict) and any(isinstance(inputs.get(k), list) for k in ("image", "text")):
            pairs, single = _paired(inputs.get("image"), inputs.get("text"))
        else:
            single = isinstance(inputs, (tuple, dict))
            pairs = [inputs] if single else inputs
        results = self._results(pairs, batch_size or self._batch_size or 32, parameters)
        if single:
            return next(results)
        return list(results) if isinstance(pairs, list) else results

    def _results(self, pairs: Iterable, batch_size: int, parameters: tuple) -> Iterator[dict[str, float]]:
        pairs = iter(pairs)
        while batch := list(islice(pairs, batch_size)):
            yield from self.run_single(batch, *parameters)

    def _sanitize_parameters(self, timeout=None, **kwargs):
        if kwargs:
            raise TypeError(f"image-text-matching takes no {', '.join(map(repr, kwargs))}")
        return ({} if timeout is None else {"timeout": timeout}), {}, {}

    def preprocess(self, pairs: list, timeout=None) -> dict[str, Any]:  # type: ignore[override]
        pil_images: dict[Any, tuple[int, Any]] = {}
        texts: dict[str, int] = {}
        image_index, text_index = [], []
        for pair in pairs:
            image, text = _image_and_text(pair)
            key = image if isinstance(image, str) else id(image)
            image_index.append(pil_images.setdefault(key, (len(pil_images), image))[0])
            text_index.append(texts.setdefault(text, len(texts)))
        opening = opening_of(self.image_processor)
        images = [read_image(image, timeout, **opening) for _, image in pil_images.values()]
        pixel_values = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        tokens = tokenize(self.tokenizer, self.model.config, list(texts))
        return {
            "pixel_values": pixel_values.to(self.dtype),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "image_index": torch.tensor(image_index),
            "text_index": torch.tensor(text_index),
        }

    def _forward(self, model_inputs):  # type: ignore[override]
        image_index, text_index = model_inputs["image_index"], model_inputs["text_index"]
        mask = model_inputs["attention_mask"]
        images = self.model.get_image_features(model_inputs["pixel_values"])
        texts = self.model.get_text_features(model_inputs["input_ids"], mask)
        output = self.model.rank(
            texts.last_hidden_state,
            images.last_hidden_state,
            mask,
            text_index=text_index,
            image_index=image_index,
            cls_only=True,
        )
        cosine = torch.nn.functional.cosine_similarity(
            images.pooler_output.float()[image_index], texts.pooler_output.float()[text_index]
        )
        return {"match_probability": output.match_probability, "cosine": cosine}

    def postprocess(self, model_outputs) -> list[dict[str, float]]:  # type: ignore[override]
        for name in ("match_probability", "cosine"):
            refuse_not_finite(self.model, model_outputs[name])
        probabilities, cosines = (model_outputs[k].tolist() for k in ("match_probability", "cosine"))
        return [
            {"match_probability": probability, "cosine": cosine}
            for probability, cosine in zip(probabilities, cosines, strict=True)
        ]


def _paired(image: Any, text: str | list[str] | None) -> tuple[list[tuple], bool]:
    """Pairs of aligned lists, or of one with all of the other; and whether there is only one pair."""
    if image is None or text is None:
        raise ValueError("image-text matching needs pairs, or both image= and text=")
    single = not isinstance(image, list) and not isinstance(text, list)
    images = image if isinstance(image, list) else [image]
    texts = text if isinstance(text, list) else [text]
    if not isinstance(image, list):
        images = images * len(texts)
    if not isinstance(text, list):
        texts = texts * len(images)
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} pictures and {len(texts)} texts do not pair up")
    return list(zip(images, texts, strict=True)), single


def _image_and_text(pair: Any) -> tuple[Any, str]:
    if isinstance(pair, dict) and "image" in pair and "text" in pair:
        image, text = pair["image"], pair["text"]
    elif isinstance(pair, (tuple, list)) and len(pair) == 2:
        image, text = pair
    else:
        raise TypeError(f"a pair is (picture, text) or {{'image': …, 'text': …}}, not {pair!r:.80}")
    if not isinstance(text, str):
        raise TypeError(f"the text of a pair must be a string, not {type(text).__name__}: (picture, text)")
    return image, text
