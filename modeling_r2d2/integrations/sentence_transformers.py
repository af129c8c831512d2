"""R2D2 in sentence-transformers: the towers as a `SentenceTransformer`, the ranker as a `CrossEncoder`.

    model = sentence_transformer("runs/demo")
    model.similarity(model.encode(["一只猫"]), model.encode([picture]))
    cross_encoder("runs/demo").rank("一只猫", [picture, "dog.png"])

What `save` of these writes loads by `SentenceTransformer(folder, trust_remote_code=True)` and `CrossEncoder(…)` (the
flag lets sentence-transformers import this module, which must be installed), and still as an R2D2 by `AutoModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

try:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modality import is_image_url_or_path
    from sentence_transformers.base.modality_types import Modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "sentence-transformers 6 or newer is needed: pip install 'modeling-r2d2[sentence-transformers]'"
    ) from error

from ..inference.finite import require_finite
from ..inference.loading import load_processor, load_whole, one_line_errors
from ..inference.models import two_tower_class
from ..inference.scoring import SCORE_RULES, ScoreRule, TwoStageScore
from ..model.configuration_r2d2 import text_positions
from ..model.modeling_r2d2 import R2D2Model, match_log_odds, normalize
from ..model.processing_r2d2 import R2D2Processor
from ..model.two_towers_r2d2 import require_ranker
from ..processing.files.images import IMAGE_SUFFIXES, open_image, opening_of

_IMAGES = (Image.Image, np.ndarray, Path)
_ADDRESSES = ("http://", "https://", "data:image/")
# of pictures that are not read: a name that ends so is no text either
_UNREAD = frozenset({".svg", ".psd", ".eps", ".pdf", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"})


class _R2D2Module(InputModule):
    """An R2D2 and its processor, saved in the root of the folder, as `AutoModel` finds them."""

    save_in_root = True
    config_keys: list[str] = []

    def __init__(self, model: R2D2Model, processor: R2D2Processor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor

    @property
    def modalities(self) -> list[Modality]:
        """What a call takes: texts or pictures."""
        return ["text", "image"]

    @property
    def tokenizer(self) -> Any:
        """Of the processor."""
        return self.processor.tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self.processor.tokenizer = value

    @property
    def max_seq_length(self) -> int:
        """Tokens that are read of a text; longer ones are truncated."""
        return self.processor.tokenizer.model_max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        positions = text_positions(self.model.config.text_config)
        if not 2 < value <= positions:
            raise ValueError(f"max_seq_length is {value}; this text tower has {positions} positions")
        if self.model.config.attend_padding and value != (own := self.model.config.max_text_length):
            raise ValueError(f"max_seq_length is {value}; this text tower reads its padding, so it stays at {own}")
        self.processor.tokenizer.model_max_length = value

    @classmethod
    def load(
        cls,
        model_name_or_path: str | PathLike,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> _R2D2Module:
        """From a model folder or Hub name; called by sentence-transformers too.

        Raises:
            ValueError: another backend than torch; for the ranker, a model without one (PRD2).
        """
        if backend != "torch":
            raise ValueError(f"backend {backend!r}: an R2D2 runs here by torch alone")
        place: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        kind, processor_kind = two_tower_class(model_name_or_path, "open in sentence-transformers")
        model = load_whole(kind, model_name_or_path, **place, **(model_kwargs or {}), **(config_kwargs or {}))
        processor = load_processor(processor_kind, model_name_or_path, **place, **(processor_kwargs or {}))
        place["cache_folder"] = place.pop("cache_dir")
        with one_line_errors(model_name_or_path, "configuration"):
            own = cls.load_config(str(model_name_or_path), **place) if cls.config_keys else {}
        return cls(model, processor, **own)

    def _of_one_kind(self, inputs: Sequence[Any], prompt: str | None) -> dict[str, Tensor]:
        """Texts or pictures, each by itself; see `R2D2Encoder.preprocess`."""
        pil_images, values = zip(*map(_kind, inputs), strict=True)
        if any(pil_images) and not all(pil_images):
            raise ValueError("texts and pictures in one call: encode them by a call each, and compare the embeddings")
        if pil_images[0]:
            images = [_opened(value, self.processor) for value in values]
            return dict(self.processor(images=images, return_tensors="pt"))
        return _texts(self.processor, [(prompt or "") + text for text in values])

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Weights (safetensors), configuration, code and processor.

        Raises:
            ValueError: `safe_serialization` False: pickles are not written.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle; weights are saved as safetensors only")
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        if self.config_keys:
            self.save_config(output_path)


class R2D2Encoder(_R2D2Module):
    """The two towers: texts or pictures to L2-normalised embeddings (N, D) in one space, float32.

    A call holds texts or pictures, not both. Pictures are `PIL.Image`, arrays (H, W, 3) of 8 bit, or file names that
    end as picture files do.
    """

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.model.config.projection_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Texts to `input_ids` and `attention_mask` (T, L), pictures to `pixel_values` (I, 3, S, S).

        Args:
            prompt: goes before every text; pictures take none.

        Raises:
            ValueError: texts and pictures mixed.
            ImageReadError: a file that is no picture.
        """
        return self._of_one_kind(inputs, prompt)

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Adds `sentence_embedding` (N, D) and, of texts, `token_embeddings` (T, L, width of the tower)."""
        if "pixel_values" in features:
            output = self.model.get_image_features(features["pixel_values"])
        else:
            output = self.model.get_text_features(features["input_ids"], features["attention_mask"])
            features["token_embeddings"] = output.last_hidden_state
        features["sentence_embedding"] = normalize(output.pooler_output.float())
        if not self.training:
            require_finite(features["sentence_embedding"], f"embeddings of {self.model.config.name_or_path}")
        return features


class R2D2Ranker(_R2D2Module):
    """The two cross encoders: (text, picture) pairs, in either order, to scores (P, 1).

    A text or picture that occurs in several pairs of a batch is encoded once.

    Args:
        model: with a ranker.
        processor: the model's.
        score: "match", the log-odds of the match probability, which a sigmoid makes that probability again; or a rule
            of `TwoStageScore`, "fused" or "published", by which both stages together order candidates.

    Raises:
        ValueError: a model without a ranker (PRD2), another score.
    """

    config_file_name = "r2d2_ranker.json"
    config_keys = ["score"]

    def __init__(self, model: R2D2Model, processor: R2D2Processor, score: Literal["match"] | ScoreRule = "match"):
        require_ranker(model.config, "a CrossEncoder", "use it as SentenceTransformer")
        if score != "match" and score not in SCORE_RULES:
            raise ValueError(f"score is {score!r}; use one of match, {', '.join(SCORE_RULES)}")
        super().__init__(model, processor)
        self.score = score

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Distinct texts and pictures, and `text_index`, `image_index` (P,) that name the pairs.

        A column of texts or of pictures, of which the trainer's model card takes statistics, is encoded as it is.

        Raises:
            ValueError: a pair that is not of one text and one picture; names its place.
            ImageReadError: a bad file.
        """
        if not any(isinstance(pair, (list, tuple)) for pair in inputs):
            return self._of_one_kind(inputs, prompt)
        texts: dict[str, int] = {}
        pil_images: dict[Any, tuple[int, Any]] = {}
        text_index, image_index = [], []
        for place, pair in enumerate(inputs):
            text, image = _text_and_image(pair, place)
            text_index.append(texts.setdefault((prompt or "") + text, len(texts)))
            key = str(image) if isinstance(image, (str, Path)) else id(image)
            image_index.append(pil_images.setdefault(key, (len(pil_images), image))[0])
        images = [_opened(image, self.processor) for _, image in pil_images.values()]
        return {
            **_texts(self.processor, list(texts)),
            "pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"],
            "text_index": torch.tensor(text_index),
            "image_index": torch.tensor(image_index),
        }

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Adds `scores` (P, 1), float32.

        Raises:
            ValueError: no pairs, but texts or pictures by themselves; the published score, which is no log-odds that a
                loss could train.
        """
        if self.training and self.score == "published":
            raise ValueError(
                "cosine + probability cannot be trained: make the model by cross_encoder(…, score='match')"
            )
        if "text_index" not in features:
            raise ValueError("the ranker compares pairs of one text and one picture, and these are no pairs")
        texts = self.model.get_text_features(features["input_ids"], features["attention_mask"])
        images = self.model.get_image_features(features["pixel_values"])
        output = self.model.rank(
            texts.last_hidden_state,
            images.last_hidden_state,
            features["attention_mask"],
            features["text_index"],
            features["image_index"],
            cls_only=True,
        )
        scores = match_log_odds(output.text_match_logits, output.image_match_logits)
        if self.score != "match":
            text_embeds, image_embeds = (normalize(each.pooler_output.float()) for each in (texts, images))
            cosine = (text_embeds[features["text_index"]] * image_embeds[features["image_index"]]).sum(dim=-1)
            scores = TwoStageScore.of(self.model, self.score)(cosine, scores)
        features["scores"] = scores.unsqueeze(1)
        if not self.training:
            require_finite(features["scores"], f"scores of {self.model.config.name_or_path}")
        return features


def sentence_transformer(model: str | PathLike, **kwargs: Any) -> SentenceTransformer:
    """An R2D2 or PRD2 folder (or Hub name) as a `SentenceTransformer`; `kwargs` go to it (`device`, `prompts`, …)."""
    return SentenceTransformer(modules=[R2D2Encoder.load(model)], similarity_fn_name="cosine", **kwargs)


def cross_encoder(
    model: str | PathLike, score: Literal["match"] | ScoreRule | None = None, **kwargs: Any
) -> CrossEncoder:
    """The ranker of an R2D2 folder (or Hub name) as a `CrossEncoder`.

    Args:
        model: the folder or name.
        score: what `predict` and `rank` give: "fused" or "published", both stages' score, as a search orders by it;
            "match", the match probability alone, also to train the ranker. None: as the model's configuration says.
        kwargs: go to the `CrossEncoder`.

    Raises:
        ValueError: a model without a ranker (PRD2), another score.
    """
    loaded = R2D2Ranker.load(model)
    ranker = R2D2Ranker(loaded.model, loaded.processor, score or loaded.model.config.two_stage_score)
    if ranker.score != "match":  # beyond about 17 a sigmoid is 1 for all
        kwargs.setdefault("activation_fn", torch.nn.Identity())
    return CrossEncoder(modules=[ranker], **kwargs)


def _texts(processor: R2D2Processor, texts: list[str]) -> dict[str, Tensor]:
    encoded = processor(text=texts, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _kind(value: Any) -> tuple[bool, Any]:
    """Whether an input is a picture, and its value without the library's long form (`{"image": …}`, `{"text": …}`).

    Raises:
        ValueError: neither; the name of a picture file that does not exist, which would else pass as a text.
    """
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("text", "image"):
        kind, inner = next(iter(value.items()))
        if isinstance(inner, str) or (kind == "image" and isinstance(inner, _IMAGES)):
            return kind == "image", inner
    if isinstance(value, _IMAGES):
        return True, value
    if not isinstance(value, str):
        raise ValueError(
            f"an input is a text, a PIL picture, an array (H, W, 3) or the name of a picture file, not "
            f"{type(value).__name__}"
        )
    if is_image_url_or_path(value) and value.startswith(_ADDRESSES):
        return True, value
    suffix = PurePath(value).suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in _UNREAD:
        if Path(value).is_file():
            return True, value
        raise ValueError(f'{value}: no such picture file; write {{"text": "{value}"}} if it is a text')
    return False, value


def _opened(value: Any, processor: R2D2Processor) -> Image.Image:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            raise ValueError(f"an array picture is (H, W, 3) uint8, not {value.shape} {value.dtype}")
        return Image.fromarray(value)
    if isinstance(value, str) and value.startswith(("http://", "https://", "data:")):
        raise ValueError(
            f"{value[:80]}: pictures are not downloaded or decoded from addresses; give a file or a PIL picture"
        )
    return open_image(value, **opening_of(processor))


def _text_and_image(pair: Any, place: int) -> tuple[str, Any]:
    kinds = [_kind(value) for value in pair] if isinstance(pair, (list, tuple)) else []
    if len(kinds) != 2 or kinds[0][0] == kinds[1][0]:
        raise ValueError(f"pair {place} is not one text and one picture: {pair!r}; the ranker compares these alone")
    (_, text), (_, image) = sorted(kinds, key=lambda kind: kind[0])
    return text, image


__all__ = ["R2D2Encoder", "R2D2Ranker", "cross_encoder", "sentence_transformer"]
