"""The ranker of a trained model, arranged for search: the same match logits with little more than half of the work.

Against running both cross encoders pair by pair:

- what does not depend on the pairing is computed once: the text-image encoder's first self-attention for each text,
  `img_joint_proj` and the image-text encoder's first self-attention for each picture, keys and values of the context;
- the last layer computes the [CLS] row alone, and makes no keys or values for it (`FoldedAttention.onto`);
- texts are short: the image tokens' query and output projections are folded into a text's keys and values;
- texts are trimmed and sorted by length; a chunk holds the candidates of one text, or of many texts of like length.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from ..model.cross_encoder_r2d2 import R2D2CrossEncoderLayer
from ..model.modeling_r2d2 import R2D2Model, match_log_odds, match_probability
from ..model.two_towers_r2d2 import require_ranker
from ..processing.files.progress import bar
from .attention import FoldedAttention, SelfAttention
from .encoding import EncodedImages, EncodedTexts, name_of
from .finite import require_finite

#: A text with at least so many candidates gets chunks of its own, where its folded keys are shared.
SHARED_FROM = 4
#: Memory for what is prepared of the pictures that are ranked at a time.
_BLOCK_BYTES = 2**28


@dataclass
class RankedTexts:
    """T texts: hidden_states (T, L, D) of the tower; lengths (T,) in tokens, [CLS] and [SEP] included."""

    hidden_states: Tensor
    lengths: Tensor


@dataclass
class RankedImages:
    """I pictures, as far as they do not depend on a text.

    Args:
        states: (I, N, E) of the tower.
        queries: (I, M, D) the image-text encoder's after its first self-attention, M = N, N + 1 where a mean stands in
            for [CLS], 1 if there is only one layer.
        keys: (I, K - 1, N, D) of the text-image encoder's K layers but the last, None where they are not kept.
        values: (I, K - 1, N, D).
    """

    states: Tensor
    queries: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def take(self, rows: Tensor) -> "RankedImages":
        """Some of them: views where they lie together, and one alone where all rows are the same."""
        steps = rows.diff()
        part: slice | Tensor = rows
        if bool((steps == 1).all()):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
        elif bool((steps == 0).all()):
            part = rows[:1]
        # queries may be missing where the text-image encoder alone is asked
        return RankedImages(*cast(list[Tensor], [None if t is None else t[part] for t in vars(self).values()]))


@dataclass
class MatchLogits:
    """Of P pairs: text_match_logits, image_match_logits (P, 2); None where that encoder was not asked."""

    text_match_logits: Tensor | None
    image_match_logits: Tensor | None

    @property
    def match_probability(self) -> Tensor:
        """(P,) float32: mean of both encoders' softmax of class 1, or the one encoder's."""
        return match_probability(*self._known)

    @property
    def match_log_odds(self) -> Tensor:
        """(P,) float32: log p − log(1 − p) of that probability, however near 0 or 1 it is."""
        return match_log_odds(*self._known)

    @property
    def _known(self) -> tuple[Tensor, Tensor]:
        known = [logits for logits in (self.text_match_logits, self.image_match_logits) if logits is not None]
        return known[0], known[-1]


class _Layer:
    def __init__(self, layer: R2D2CrossEncoderLayer):
        self.self_attention = SelfAttention(layer.self_attn)
        self.cross_attention = FoldedAttention(layer.cross_attn)
        self.self_norm, self.cross_norm = layer.self_attn_layer_norm, layer.cross_attn_layer_norm
        self.fc1, self.fc2, self.activation = layer.fc1, layer.fc2, layer.activation
        self.final_norm = layer.final_layer_norm

    def own(self, states: Tensor, mask: Tensor | None, cls_only: bool) -> Tensor:
        """LN(x + SelfAttention(x)), of the [CLS] row alone with `cls_only`."""
        if cls_only:
            first = states[:, :1]
            return self.self_norm(first + self.self_attention.onto(first, states, mask))
        return self.self_norm(self.self_attention.over_itself(states, mask).add_(states))

    def rest(self, states: Tensor, attended: Tensor) -> Tensor:
        """What follows the cross-attention."""
        states = self.cross_norm(attended + states)
        return self.final_norm(self.fc2(self.activation(self.fc1(states))).add_(states))


class _Ranker:
    """What rankers share: probabilities where log-odds are known."""

    def match_log_odds(
        self, texts: EncodedTexts, images: EncodedImages, text_index: Tensor, image_index: Tensor
    ) -> Tensor:
        """Log-odds of the match probability of P pairs of what the towers encoded, wherever that is kept.

        Args:
            texts: with their states.
            images: with their states.
            text_index: (P,) int64.
            image_index: (P,) int64.

        Returns:
            (P,) float32, on the CPU.

        Raises:
            ValueError: states that were not kept.
        """
        raise NotImplementedError

    def match_probabilities(
        self, texts: EncodedTexts, images: EncodedImages, text_index: Tensor, image_index: Tensor
    ) -> Tensor:
        """Match probabilities (P,) of the same pairs, see `match_log_odds`."""
        return self.match_log_odds(texts, images, text_index, image_index).sigmoid()


class FastRanker(_Ranker):
    """Match logits and probabilities of pairs of encoded texts and pictures.

    It reads the model's weights when it is made: make another one after training.

    Args:
        model: with a ranker.
        chunk: pairs that the image-text encoder sees at a time (the text-image encoder: four times as many).
            Default: 4 on a CPU, where what a chunk leaves between two layers then stays in its caches; 64 elsewhere.

    Raises:
        ValueError: a model without a ranker (PRD2).
        TypeError: layers that are no plain `nn.Linear`.
    """

    def __init__(self, model: R2D2Model, chunk: int | None = None):
        require_ranker(model.config)
        self.model = model
        self.chunk = chunk or (4 if model.device.type == "cpu" else 64)
        with torch.no_grad():
            self.text_image, self.image_text = (
                [_Layer(cast(R2D2CrossEncoderLayer, layer)) for layer in encoder.layers]
                for encoder in (model.text_image_encoder, model.image_text_encoder)
            )

    @torch.inference_mode()
    def prepare(self, states: Tensor, keys_values: bool = False) -> RankedImages:
        """What does not depend on a text, for tower states (I, N, E); with `keys_values` those of every layer too."""
        model = self.model
        queries = model.image_joint_projection(states)
        if not model.config.has_class_token:  # as in `R2D2Model.rank`
            queries = torch.cat([queries.mean(dim=1, keepdim=True), queries], dim=1)
        images = RankedImages(states, self.image_text[0].own(queries, None, cls_only=len(self.image_text) == 1))
        return self.with_keys_values(images) if keys_values else images

    @torch.inference_mode()
    def with_keys_values(self, images: RankedImages) -> RankedImages:
        """The same pictures with the text-image encoder's keys and values."""
        modules = [layer.cross_attention.module for layer in self.text_image[:-1]]
        keys = [module.k_proj(images.states) for module in modules]
        values = [module.v_proj(images.states) for module in modules]
        empty = images.states.new_empty(len(images), 0, images.states.shape[1], self._size)
        return replace(
            images,
            keys=torch.stack(keys, dim=1) if keys else empty,
            values=torch.stack(values, dim=1) if values else empty,
        )

    @property
    def _size(self) -> int:
        cross = self.model.config.cross_encoder_config
        assert cross is not None
        return cross.hidden_size

    def match_log_odds(
        self, texts: EncodedTexts, images: EncodedImages, text_index: Tensor, image_index: Tensor
    ) -> Tensor:
        """As described above. Pictures are prepared once each, a block of them at a time; a text's work is shared
        within a block."""
        own_texts, states = RankedTexts(texts.states, texts.attention_mask.sum(dim=1)), images.states
        text_index, (own, place) = text_index.cpu(), image_index.cpu().unique(return_inverse=True)
        size = max(_BLOCK_BYTES // (8 * states.shape[1] * self._size), 8)
        log_odds = torch.empty(len(text_index))
        with bar(doing="ranking", total=len(text_index), unit="pairs") as shown:
            for number, rows in enumerate(own.split(size)):
                prepared = self.prepare(states[rows].to(self.model.device))
                pairs = (place // size == number).nonzero()[:, 0]
                found = self.logits(own_texts, prepared, text_index[pairs], place[pairs] % size, shown=shown)
                log_odds[pairs] = found.match_log_odds.cpu()
        return log_odds

    @torch.inference_mode()
    def logits(
        self,
        texts: RankedTexts,
        images: RankedImages,
        text_index: Tensor,
        image_index: Tensor,
        text_image: bool = True,
        image_text: bool = True,
        shown: tqdm | None = None,
    ) -> MatchLogits:
        """Match logits of P pairs, in their order.

        Args:
            texts: T texts.
            images: I pictures, on the model's device.
            text_index: (P,) int64.
            image_index: (P,) int64.
            text_image: whether to ask the text-image encoder.
            image_text: whether to ask the image-text encoder.
            shown: the bar that counts the pairs; None: one of its own.

        Returns:
            equal to those of `R2D2Model.rank` but for rounding (measured: 1e-6 in float32).
        """
        result: dict[str, Tensor | None] = {}
        # places are read on the CPU: a device would have to be waited for at every chunk
        lengths, text_index, image_index = texts.lengths.cpu(), text_index.cpu(), image_index.cpu()
        progress = bar(doing="ranking", total=len(text_index), unit="pairs") if shown is None else shown
        for name, wanted, size, encode in (
            ("text_match_logits", text_image, 4 * self.chunk, self._text_image_logits),
            ("image_match_logits", image_text, self.chunk, self._image_text_logits),
        ):
            out = None
            for pairs, rows in self._chunks(lengths, text_index, size) if wanted else ():
                own = texts.hidden_states[rows, : int(lengths[rows].max())].to(self.model.device)
                mask = None  # which is quicker; within a chunk lengths are mostly equal
                if len(rows) > 1 and int(lengths[rows].min()) < own.shape[1]:
                    mask = (torch.arange(own.shape[1]) < lengths[rows].unsqueeze(1)).to(own.device)
                chunk = encode(own, mask, images.take(image_index[pairs]))
                if out is None:
                    out = chunk.new_empty(len(text_index), 2)
                out[pairs] = chunk
                if encode == self._image_text_logits or not image_text:  # the slower one counts
                    progress.update(len(pairs))
            if out is not None:
                require_finite(out, f"match logits of {name_of(self.model)}")
            result[name] = out
        if shown is None:
            progress.close()
        return MatchLogits(**result)

    def _chunks(self, lengths: Tensor, text_index: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (places) and their texts: one text for all of them, or a text for each, of like length."""
        if not len(text_index):
            return
        # by length, then by text (whose number is less than their count)
        order = torch.argsort(lengths[text_index] * len(lengths) + text_index, stable=True)
        _, counts = text_index[order].unique_consecutive(return_counts=True)
        shared = counts >= min(SHARED_FROM, size)
        of_shared = shared.repeat_interleave(counts)
        for pairs in order[of_shared].split(counts[shared].tolist()):  # one text each
            for part in pairs.split(size):
                yield part, text_index[part[:1]]
        if not bool(of_shared.all()):
            for part in order[~of_shared].split(size):
                yield part, text_index[part]

    def _text_image_logits(self, texts: Tensor, mask: Tensor | None, images: RankedImages) -> Tensor:
        states, context = texts, images.states
        last = len(self.text_image) - 1
        for number, layer in enumerate(self.text_image):
            states = layer.own(states, mask, cls_only=number == last)
            cross = layer.cross_attention
            # one query, [CLS], in the last layer: there making keys of all image tokens never pays
            if images.keys is not None and images.values is not None and number < last:
                attended = cross.over_keys_values(states, images.keys[:, number], images.values[:, number])
            elif number == last or cross.folding_pays(states.shape[1], context.shape[1]):
                attended = cross.onto(states, context)
            else:
                attended = cross.over_keys_values(states, cross.module.k_proj(context), cross.module.v_proj(context))
            states = layer.rest(states, attended)
        return self.model.text_image_match_head(states[:, 0])

    def _image_text_logits(self, texts: Tensor, mask: Tensor | None, images: RankedImages) -> Tensor:
        states = images.queries
        last = len(self.image_text) - 1
        for number, layer in enumerate(self.image_text):
            if number:
                states = layer.own(states, None, cls_only=number == last)
            cross = layer.cross_attention
            if number == last:
                attended = cross.onto(states, texts, mask)
            elif cross.context_folding_pays(texts.shape[1]):
                attended = cross.over_folded(states, cross.fold_context(texts), mask)
            else:
                keys, values = cross.module.k_proj(texts), cross.module.v_proj(texts)
                attended = cross.over_keys_values(states, keys, values, mask)
            states = layer.rest(states, attended)
        return self.model.image_text_match_head(states[:, 0])


class PlainRanker(_Ranker):
    """Match log-odds and probabilities by `R2D2Model.rank` itself, for layers that cannot be rearranged (adapters,
    quantised ones).

    Args:
        model: with a ranker.
        chunk: pairs at a time.
    """

    def __init__(self, model: R2D2Model, chunk: int = 64):
        require_ranker(model.config)
        self.model, self.chunk = model, chunk

    @torch.inference_mode()
    def match_log_odds(
        self, texts: EncodedTexts, images: EncodedImages, text_index: Tensor, image_index: Tensor
    ) -> Tensor:
        """As described above."""
        model, log_odds = self.model, torch.empty(len(text_index))
        lengths = texts.attention_mask.sum(dim=1).cpu()
        text_index, image_index = text_index.cpu(), image_index.cpu()
        with bar(doing="ranking", total=len(text_index), unit="pairs") as shown:
            for pairs in lengths[text_index].argsort(stable=True).split(self.chunk):
                rows, own_text = text_index[pairs].unique(return_inverse=True)
                places, own_image = image_index[pairs].unique(return_inverse=True)
                longest = int(lengths[rows].max())
                found = model.rank(
                    texts.states[rows, :longest].to(model.device),
                    images.states[places].to(model.device),
                    attention_mask=texts.attention_mask[rows, :longest].to(model.device),
                    text_index=own_text.to(model.device),
                    image_index=own_image.to(model.device),
                    cls_only=True,
                )
                logits = torch.cat([found.text_match_logits, found.image_match_logits])
                require_finite(logits, f"match logits of {name_of(model)}")
                log_odds[pairs] = match_log_odds(found.text_match_logits, found.image_match_logits).cpu()
                shown.update(len(pairs))
        return log_odds


def ranker_of(model: R2D2Model) -> FastRanker | PlainRanker:
    """The fast ranker, or the model's own `rank` where its layers are not plain `nn.Linear`."""
    try:
        return FastRanker(model)
    except TypeError:
        return PlainRanker(model)
