"""The ranker's cross encoder: post-LN layers over pairs named by index (arXiv 2205.03860, figure 2).

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_r2d2 import R2D2CrossEncoderConfig


@dataclass
class R2D2CrossEncoderOutput(BaseModelOutputWithCrossAttentions):
    """States of P pairs: last_hidden_state (P, L, D), or the first rows (P, 1, D) where only the first F pairs were
    computed in full: full_hidden_state (F, L, D)."""

    full_hidden_state: Tensor | None = None


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scaling + mask) v with the softmax in float32: (P, H, L, d) -> (P, L, H, d), (P, H, L, N)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class R2D2Attention(nn.Module):
    """Multi-head attention over a sequence of its own (`context_size` None) or over another modality's states."""

    def __init__(self, config: R2D2CrossEncoderConfig, context_size: int | None = None):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(context_size or config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(context_size or config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        context_index: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (P, L, D) attend to context (C, N, E). `context_index` (P,) names the context of every query
        row: keys and values are projected once per context, then gathered. Without it C = P."""
        heads = (-1, self.head_dim)
        query = self.q_proj(hidden_states)
        key, value = self.k_proj(context), self.v_proj(context)
        if context_index is not None:
            key, value = key.index_select(0, context_index), value.index_select(0, context_index)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query.unflatten(-1, heads).transpose(1, 2),
            key.unflatten(-1, heads).transpose(1, 2),
            value.unflatten(-1, heads).transpose(1, 2),
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class R2D2CrossEncoderLayer(GradientCheckpointingLayer):
    """Post-LN layer: x ← LN(x + SelfAttention(x)), LN(x + CrossAttention(x, context)), LN(x + MLP(x))."""

    def __init__(self, config: R2D2CrossEncoderConfig, context_size: int):
        super().__init__()
        self.self_attn = R2D2Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = R2D2Attention(config, context_size)
        self.cross_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        query_index: Tensor | None = None,
        context_index: Tensor | None = None,
        cls_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """(Q, L, D) -> (P, L, D), or (P, 1, D) with `cls_only`. `query_index` (P,) is applied after the
        self-attention, which does not depend on the pairing."""
        queries = hidden_states[:, :1] if cls_only else hidden_states
        attended, _ = self.self_attn(queries, hidden_states, attention_mask, **kwargs)
        hidden_states = self.self_attn_layer_norm(queries + self.dropout(attended))
        if query_index is not None:
            hidden_states = hidden_states.index_select(0, query_index)
        attended, _ = self.cross_attn(hidden_states, context, context_mask, context_index, **kwargs)
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attended))
        transformed = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + self.dropout(transformed))


class R2D2CrossEncoder(PreTrainedModel):
    """One cross encoder of the ranker, without embeddings of its own.

    `context_size` is the width of the other modality's states.
    """

    config: R2D2CrossEncoderConfig
    main_input_name = "hidden_states"
    supports_gradient_checkpointing = True
    _no_split_modules = ["R2D2CrossEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": R2D2CrossEncoderLayer,
        "attentions": OutputRecorder(R2D2Attention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(R2D2Attention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: R2D2CrossEncoderConfig, context_size: int):
        super().__init__(config)
        self.layers = nn.ModuleList(
            R2D2CrossEncoderLayer(config, context_size) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        query_index: Tensor | None = None,
        context_index: Tensor | None = None,
        full_pairs: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2CrossEncoderOutput:
        """Pair queries with contexts and encode every pair.

        Args:
            hidden_states: (Q, L, D) queries.
            encoder_hidden_states: (C, N, E) contexts.
            attention_mask: (Q, L).
            encoder_attention_mask: (C, N); 1 = real, 0 = padding; None = all real.
            query_index: (P,) int64, the query of each pair; None = in order.
            context_index: (P,) int64, its context. What does not depend on the pairing (the first self-attention, all
                keys and values of the context) is computed once per query or context, not once per pair.
            full_pairs: the last layer computes all rows for the first F pairs, for the others the first row alone,
                which is all that a match head reads. None: all rows for every pair.

        Returns:
            `last_hidden_state` (P, L, D); with `full_pairs` (P, 1, D), and (F, L, D) in `full_hidden_state`.
        """
        pairing = _Pairing(
            hidden_states, encoder_hidden_states, attention_mask, encoder_attention_mask, query_index, context_index
        )
        *inner, last = self.layers
        masks = self._masks(pairing)
        for layer in inner:
            shared = pairing.query_index is not None
            pairing = pairing.after(pairing.through(layer, *masks, **kwargs))
            if shared:  # from now on every pair has a row of its own
                masks = self._masks(pairing)
        if full_pairs is None:
            return R2D2CrossEncoderOutput(last_hidden_state=pairing.through(last, *masks, **kwargs))
        full, rows = None, []
        if full_pairs:
            part = pairing.part(slice(0, full_pairs))
            full = part.through(last, *self._masks(part), **kwargs)
            rows.append(full[:, :1])
        if full_pairs < pairing.pairs:
            part = pairing.part(slice(full_pairs, pairing.pairs)) if full_pairs else pairing
            rows.append(part.through(last, *self._masks(part, rows=1), cls_only=True, **kwargs))
        return R2D2CrossEncoderOutput(last_hidden_state=torch.cat(rows), full_hidden_state=full)

    def _masks(self, pairing: "_Pairing", rows: int | None = None) -> tuple:
        """Masks of self-attention (per query) and cross-attention (per pair), for the first `rows` query rows."""
        queries = pairing.queries[:, :rows]
        # Only shape, dtype and device of these two are read: masks are made for P pairs without copies.
        pair_queries = queries[:1].expand(pairing.pairs, -1, -1)
        pair_contexts = pairing.context[:1].expand(pairing.pairs, -1, -1)
        return (
            self._mask(queries, pairing.queries, pairing.attention_mask),
            self._mask(pair_queries, pair_contexts, _take(pairing.context_mask, pairing.context_index)),
        )

    def _mask(self, queries: Tensor, context: Tensor, mask: Tensor | None):
        if mask is None:
            return None
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=queries, attention_mask=mask, encoder_hidden_states=context
        )


@dataclass
class _Pairing:
    """P pairs of queries (Q, L, D) and contexts (C, N, E), named by index or in order."""

    queries: Tensor
    context: Tensor
    attention_mask: Tensor | None
    context_mask: Tensor | None
    query_index: Tensor | None
    context_index: Tensor | None

    @property
    def pairs(self) -> int:
        """P; no `__len__`, which torch.export would make a constant."""
        index = self.context_index if self.query_index is None else self.query_index
        return (self.queries if index is None else index).shape[0]

    def through(self, layer: nn.Module, self_mask, context_mask, **kwargs) -> Tensor:
        """The states of all pairs after `layer`: (P, L, D)."""
        return layer(
            self.queries,
            self.context,
            attention_mask=self_mask,
            context_mask=context_mask,
            query_index=self.query_index,
            context_index=self.context_index,
            **kwargs,
        )

    def after(self, states: Tensor) -> "_Pairing":
        """The same pairs with their new states (P, L, D)."""
        mask = _take(self.attention_mask, self.query_index)
        return replace(self, queries=states, attention_mask=mask, query_index=None)

    def part(self, pairs: slice) -> "_Pairing":
        """Some of the pairs."""
        by_query, by_context = self.query_index is not None, self.context_index is not None
        return _Pairing(
            queries=self.queries if by_query else self.queries[pairs],
            context=self.context if by_context else self.context[pairs],
            attention_mask=self.attention_mask
            if by_query or self.attention_mask is None
            else self.attention_mask[pairs],
            context_mask=self.context_mask if by_context or self.context_mask is None else self.context_mask[pairs],
            query_index=None if self.query_index is None else self.query_index[pairs],
            context_index=None if self.context_index is None else self.context_index[pairs],
        )


def _take(tensor: Tensor | None, index: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or index is None else tensor.index_select(0, index)


__all__ = ["R2D2CrossEncoder", "R2D2CrossEncoderOutput"]
