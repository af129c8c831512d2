"""Second implementations, written from the formulas and from the layout of the authors' checkpoints: numpy for the
similarities and losses, plain torch for the ViT variants. Nothing here uses the package."""

import numpy as np
import torch
from torch import Tensor, nn


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random vectors of unit length, float64."""
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def similarity(images: np.ndarray, texts: np.ndarray, mask: np.ndarray, zero_padded=None) -> tuple:
    """FILIP, one pair at a time: (I, N, D), (T, L, D), (T, L) -> (I, T), (T, I)."""
    per_image, per_text = np.zeros((len(images), len(texts))), np.zeros((len(texts), len(images)))
    for i, image in enumerate(images):
        for t, text in enumerate(texts):
            real = [y for y, is_real in zip(text, mask[t], strict=True) if is_real]
            if not real:
                continue
            candidates = real + ([np.zeros_like(real[0])] if zero_padded is not None and zero_padded[t] else [])
            per_image[i, t] = np.mean([max(x @ y for y in candidates) for x in image])
            per_text[t, i] = np.mean([max(x @ y for x in image) for y in real])
    return per_image, per_text


def contrastive_loss(per_image: np.ndarray, per_text: np.ndarray, tau: float, ids: list[int]) -> float:
    """Cross-entropy both ways, spread evenly over the pairs of the same id."""
    loss = 0.0
    for logits in (per_image / tau, per_text / tau):
        for i, row in enumerate(logits):
            log_probability = row - row.max() - np.log(np.exp(row - row.max()).sum())
            loss -= np.mean([log_probability[j] for j, other in enumerate(ids) if other == ids[i]]) / len(ids) / 2
    return loss


def token_reduction(states: np.ndarray, weights: dict[str, np.ndarray], groups: int) -> np.ndarray:
    """(B, positions, P) -> (B, N, P), by loops over groups; `weights` under the names of the checkpoint."""

    def grouped(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        width = x.shape[-1] // groups
        parts = []
        for g in range(groups):
            own = slice(g * width, (g + 1) * width)
            parts.append(x[..., own] @ kernel[own, :, 0, 0].T)
        return np.concatenate(parts, axis=-1)

    centerd = states - states.mean(axis=-1, keepdims=True)
    normed = centerd / np.sqrt((centerd**2).mean(axis=-1, keepdims=True) + 1e-5)
    normed = normed * weights["norm.weight"] + weights["norm.bias"]
    maps = grouped(normed, weights["attention_maps.0.weight"]) @ weights["attention_maps.1.weight"][:, :, 0, 0].T
    exponents = np.exp(maps - maps.max(axis=1, keepdims=True))
    softmax = exponents / exponents.sum(axis=1, keepdims=True)  # over the positions
    values = grouped(states, weights["feat_conv.weight"])
    return np.einsum("bpn,bpd->bnd", softmax, values)


class Block(nn.Module):
    """A pre-norm layer by torch's own attention module, whose parameters have the checkpoint's names."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class Layers(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, width // 64) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Text(Layers):
    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, embedding: int):
        super().__init__(width, layers)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * 0.1)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embedding) * 0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """All positions: (T, positions, P); texts come padded with 0 to the full length."""
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        x = super().forward(self.token_embedding(ids) + self.positional_embedding, mask)
        return self.ln_final(x) @ self.text_projection


class Vision(nn.Module):
    def __init__(self, size: int, patch: int, width: int, layers: int, embedding: int, tokens: int | None):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width) * 0.1)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Layers(width, layers)
        self.proj = nn.Parameter(torch.randn(width, embedding) * 0.1)
        self.groups = 8
        if tokens:
            part = nn.Module()
            part.norm = nn.LayerNorm(embedding)
            grouped = {"groups": self.groups, "bias": False}
            part.attention_maps = nn.ModuleList(
                [nn.Conv2d(embedding, embedding, 1, **grouped), nn.Conv2d(embedding, tokens, 1, bias=False)]
            )
            part.feat_conv = nn.Conv2d(embedding, embedding, 1, **grouped)
            self.token_learner = part

    def forward(self, pixels: Tensor) -> Tensor:
        """[CLS], then patches or reduced tokens: (I, 1 + N, P)."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_post(self.transformer(self.ln_pre(x))) @ self.proj
        if not hasattr(self, "token_learner"):
            return x
        weights = {name: tensor.detach().numpy() for name, tensor in self.token_learner.state_dict().items()}
        reduced = token_reduction(x[:, 1:].detach().numpy(), weights, self.groups)
        return torch.cat([x[:, :1], torch.tensor(reduced, dtype=x.dtype)], dim=1)


class Wukong(nn.Module):
    """The ViT variants, small; `state_dict()` has the names of the authors' files."""

    def __init__(self, embedding: int = 256, tokens: int | None = None):
        super().__init__()
        self.visual = Vision(32, 8, 128, 2, embedding, tokens)
        self.transformer = Text(60, 12, 64, 2, embedding)
        self.token_wise = embedding == 256
        for parameter in self.parameters():  # every bias and norm differs from its neutral value
            parameter.data += 0.05 * torch.randn_like(parameter)

    @torch.no_grad()
    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Similarities (I, T) and (T, I), as the published evaluation compares: padding features set to zero."""
        images, texts, mask = self.visual(pixels), self.transformer(ids), (ids > 0).numpy()
        if self.token_wise:
            images, texts = (nn.functional.normalize(x, dim=-1).double().numpy() for x in (images[:, 1:], texts))
            return similarity(images, texts, mask, zero_padded=~mask.all(axis=1))
        last = texts[torch.arange(len(texts)), torch.tensor(mask.sum(axis=1) - 1)]
        images, texts = (nn.functional.normalize(x, dim=-1).double().numpy() for x in (images[:, 0], last))
        return images @ texts.T, texts @ images.T


def published_tensors(tower: str, variant: str) -> dict[str, Tensor]:
    """Names and shapes of the nine published models, from the published configurations and module definitions; on
    the meta device."""
    text_width = 512 if tower == "vit-b-32" else 768
    embedding = text_width if variant == "clip" else 256
    tokens = {"vit-b-32": 12, "vit-l-14": 24, "swin-l": 12}[tower] if variant == "wukong" else None
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, inner: int, bias: bool = True):
        shapes[f"{name}.weight"] = (out, inner)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def blocks(prefix: str, width: int, layers: int):
        for n in range(layers):
            block = f"{prefix}.resblocks.{n}"
            shapes[f"{block}.attn.in_proj_weight"], shapes[f"{block}.attn.in_proj_bias"] = (
                (3 * width, width),
                (3 * width,),
            )
            linear(f"{block}.attn.out_proj", width, width)
            linear(f"{block}.mlp.c_fc", 4 * width, width)
            linear(f"{block}.mlp.c_proj", width, 4 * width)
            norm(f"{block}.ln_1", width)
            norm(f"{block}.ln_2", width)

    if tower == "swin-l":
        shapes["visual.patch_embed.proj.weight"], shapes["visual.patch_embed.proj.bias"] = (192, 3, 4, 4), (192,)
        norm("visual.patch_embed.norm", 192)
        for stage, (depth, heads) in enumerate(zip((2, 2, 18, 2), (6, 12, 24, 48), strict=True)):
            width, side = 192 * 2**stage, 56 // 2**stage
            for n in range(depth):
                block = f"visual.layers.{stage}.blocks.{n}"
                shapes[f"{block}.attn.relative_position_bias_table"] = (169, heads)
                shapes[f"{block}.attn.relative_position_index"] = (49, 49)
                if n % 2 and side > 7:
                    shapes[f"{block}.attn_mask"] = ((side // 7) ** 2, 49, 49)
                linear(f"{block}.attn.qkv", 3 * width, width)
                linear(f"{block}.attn.proj", width, width)
                linear(f"{block}.mlp.fc1", 4 * width, width)
                linear(f"{block}.mlp.fc2", width, 4 * width)
                norm(f"{block}.norm1", width)
                norm(f"{block}.norm2", width)
            if stage < 3:
                linear(f"visual.layers.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
                norm(f"visual.layers.{stage}.downsample.norm", 4 * width)
        norm("visual.norm", 1536)
        linear("visual.head", embedding, 1536)
    else:
        width, layers, patch = (768, 12, 32) if tower == "vit-b-32" else (1024, 24, 14)
        shapes["visual.conv1.weight"], shapes["visual.class_embedding"] = (width, 3, patch, patch), (width,)
        shapes["visual.positional_embedding"] = ((224 // patch) ** 2 + 1, width)
        norm("visual.ln_pre", width)
        norm("visual.ln_post", width)
        blocks("visual.transformer", width, layers)
        shapes["visual.proj"] = (width, embedding)
    if tokens:
        norm("visual.token_learner.norm", embedding)
        shapes["visual.token_learner.attention_maps.0.weight"] = (embedding, embedding // 8, 1, 1)
        shapes["visual.token_learner.attention_maps.1.weight"] = (tokens, embedding, 1, 1)
        shapes["visual.token_learner.feat_conv.weight"] = (embedding, embedding // 8, 1, 1)
    blocks("transformer", text_width, 12)
    shapes["transformer.token_embedding.weight"] = (21128, text_width)
    shapes["transformer.positional_embedding"] = (32, text_width)
    norm("transformer.ln_final", text_width)
    shapes["transformer.text_projection"] = (text_width, embedding)
    shapes["loss.logit_scale"] = ()
    return {
        name: torch.empty(shape, device="meta", dtype=torch.long if name.endswith("_index") else torch.float32)
        for name, shape in shapes.items()
    }
