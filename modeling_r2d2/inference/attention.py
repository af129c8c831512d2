"""Cross-encoder attention with products folded into whichever side is shared or short: exact, in another order.

For a head with queries q = W_q x, keys k = W_k c, values v = W_v c and output W_o (biases left out here):

    scores  qᵀk = xᵀ (W_qᵀ k) = (W_kᵀ q)ᵀ c         output  W_o Σ a v = Σ a (W_o v) = W_o W_v Σ a c

so a projection can be applied to the L text tokens instead of the N image tokens, or the other way round. With a bias
b_k the scores of a query all move by qᵀb_k, which the softmax does not see; b_v passes unchanged, weights sum to 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..model.cross_encoder_r2d2 import R2D2Attention


class FoldedAttention:
    """The projections of an attention module of the ranker, per head."""

    def __init__(self, attention: R2D2Attention):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            if type(getattr(attention, name)) is not nn.Linear:
                raise TypeError(
                    f"the fast ranker reads plain weights, and {name} is a {type(getattr(attention, name)).__name__}: "
                    "merge adapters into the model first (PEFT: merge_and_unload)"
                )
        self.module = attention
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        size = attention.q_proj.out_features
        self.heads = size // self.head_dim
        per_head = (self.heads, self.head_dim)
        self.query_weight = attention.q_proj.weight.unflatten(0, per_head)  # (H, d, D)
        self.query_bias = attention.q_proj.bias.unflatten(0, per_head)  # (H, d)
        self.key_weight = attention.k_proj.weight.unflatten(0, per_head)  # (H, d, E)
        self.value_weight = attention.v_proj.weight.unflatten(0, per_head).transpose(1, 2)  # (H, E, d)
        self.value_bias = attention.v_proj.bias
        self.output_weight = attention.out_proj.weight.t().unflatten(0, per_head)  # (H, d, D)

    def split(self, projected: Tensor) -> Tensor:
        """(P, L, H d) -> (P, H, L, d)."""
        return projected.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def join(self, attended: Tensor) -> Tensor:
        """(P, H, L, d) -> (P, L, D), through the output projection."""
        return self.module.out_proj(attended.transpose(1, 2).flatten(2))

    def fold_context(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A short context (T, L, E) with the query and output projections folded in.

        Returns:
            keys (T, D, H L), biases of the scores (T, 1, H L), values (T, H L, D).
        """
        keys = self.split(self.module.k_proj(context)) * self.scaling
        values = self.split(self.module.v_proj(context))
        folded = torch.matmul(keys, self.query_weight)  # (T, H, L, D)
        bias = torch.matmul(keys, self.query_bias.unsqueeze(-1))
        output = torch.matmul(values, self.output_weight)
        return folded.flatten(1, 2).transpose(1, 2), bias.flatten(1).unsqueeze(1), output.flatten(1, 2)

    def over_folded(self, states: Tensor, folded: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """states (P or 1, N, D) attend to contexts from `fold_context` (P or 1, …); mask (P, L) is True where real."""
        keys, bias, values = folded
        if len(keys) == 1:  # one context for all: plain matrix products
            scores = torch.addmm(bias[0], states.flatten(0, 1), keys[0]).view(*states.shape[:2], self.heads, -1)
        else:
            states = states.expand(len(keys), -1, -1)
            scores = torch.baddbmm(bias, states, keys).unflatten(-1, (self.heads, -1))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        weights = _softmax(scores).flatten(2)
        if len(keys) == 1:
            out = torch.addmm(self.module.out_proj.bias, weights.flatten(0, 1), values[0])
            return out.view(states.shape)
        return torch.baddbmm(self.module.out_proj.bias, weights, values)

    def onto(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """A few queries (P or 1, L, D) attend to contexts (P or 1, N, E) whose keys and values are never made."""
        heads = self.split(self.module.q_proj(queries)) * self.scaling  # (P, H, L, d)
        folded = torch.matmul(heads, self.key_weight).flatten(1, 2)  # (P, H L, E)
        scores = torch.matmul(folded, context.transpose(1, 2))
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        summed = torch.matmul(_softmax(scores), context).unflatten(1, (self.heads, -1))  # (P, H, L, E)
        return self.join(torch.matmul(summed, self.value_weight) + self.value_bias.view(self.heads, 1, -1))

    def over_keys_values(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries (P or 1, L, D) attend to projected keys and values (P or 1, N, H d)."""
        parts = [self.split(each) for each in (self.module.q_proj(queries), keys, values)]
        pairs = max(map(len, parts))
        query, key, value = (each.expand(pairs, -1, -1, -1) for each in parts)
        mask = None if mask is None else mask[:, None, None]
        return self.join(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scaling))

    def folding_pays(self, queries: int, context: int) -> bool:
        """Whether `onto` costs fewer multiplications than projecting keys and values of the context first."""
        size, width = self.heads * self.head_dim, self.key_weight.shape[-1]
        folded = 2 * queries * (self.heads * context * width + size * width)
        projected = 2 * context * width * size + 2 * queries * context * size
        return folded < projected

    def context_folding_pays(self, context: int) -> bool:
        """Whether `over_folded` costs each query fewer multiplications than projecting query and output."""
        width = self.query_weight.shape[-1]
        return self.heads * context * width < width * (self.heads * self.head_dim + context)


class SelfAttention(FoldedAttention):
    """A self-attention module with its three projections in one product."""

    def __init__(self, attention: R2D2Attention):
        super().__init__(attention)
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.weight = torch.cat([part.weight for part in parts])
        self.bias = torch.cat([part.bias for part in parts])

    def over_itself(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (P, N, D) attend to one another; mask (P, N) is True where real."""
        projected = functional.linear(states, self.weight, self.bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        mask = None if mask is None else mask[:, None, None]
        return self.join(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scaling))


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
