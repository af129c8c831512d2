"""The heat map is the text-image encoder's own attention, on the right patches and words."""

import numpy as np
import pytest
import torch

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.search.heatmap import heat_map
from tests.helpers import tiny_image, tiny_model, tiny_processor


def by_hand(model, states, texts):
    """Mean over layers and heads of softmax(q kᵀ / √d), written out: (L, N)."""
    maps = []
    hidden = texts
    for layer in model.text_image_encoder.layers:
        normed = layer.self_attn_layer_norm(hidden + layer.self_attn(hidden, hidden)[0])
        cross = layer.cross_attn
        query, key = cross.q_proj(normed)[0], cross.k_proj(states)[0]
        heads = query.shape[-1] // cross.head_dim
        for head in range(heads):
            part = slice(head * cross.head_dim, (head + 1) * cross.head_dim)
            maps.append((query[:, part] @ key[:, part].T / cross.head_dim**0.5).softmax(dim=-1))
        hidden = layer(hidden, states)
    return torch.stack(maps).mean(dim=0)


def test_word_and_patches():
    torch.manual_seed(2)
    model, processor = tiny_model(), tiny_processor()
    image = tiny_image(3, 64, 32)
    inputs = processor(images=[image], text=["红鱼和红船"], return_tensors="pt")
    with torch.no_grad():
        states = model.get_image_features(inputs["pixel_values"]).last_hidden_state
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        weights = by_hand(model, states, texts)
    found = heat_map(model, processor, image, "红鱼和红船", "红")
    wanted = weights[[1, 4]].mean(dim=0)[1:].view(2, 2)  # token 0 is [CLS], patch 0 the tower's
    torch.testing.assert_close(found.weights, wanted, atol=1e-6, rtol=0)
    assert found.spans == [(0, 1), (3, 4)]
    whole = heat_map(model, processor, image, "红鱼和红船")
    torch.testing.assert_close(whole.weights, weights[1:-1].mean(dim=0)[1:].view(2, 2), atol=1e-6, rtol=0)
    assert model.text_image_encoder.config._attn_implementation == "sdpa"
    assert R2D2Retriever(model, processor).heat_map(image, "红鱼和红船", "红").weights.equal(found.weights)


def test_overlay_is_reddest_where_it_looks():
    torch.manual_seed(2)
    model, processor = tiny_model(), tiny_processor()
    found = heat_map(model, processor, tiny_image(3, 64, 64), "红鱼", "鱼")
    overlay = found.overlay(1.0)
    assert overlay.size == (64, 64)
    change = np.abs(np.asarray(overlay, dtype=int) - np.asarray(found.image, dtype=int)).sum(axis=2)
    row, column = divmod(int(found.weights.argmax()), 2)
    top = corner(np.asarray(overlay), row, column)
    assert np.abs(top - np.array([0xD7, 0x30, 0x1F])).max() < 60
    assert change.max() > 0


def corner(pixels, row, column):
    """The colour at a patch's outer corner, where interpolation leaves it alone."""
    return pixels[63 * row, 63 * column].astype(int)


def test_refusals():
    model, processor = tiny_model(), tiny_processor(max_length=6)
    with pytest.raises(ValueError, match="not in"):
        heat_map(model, processor, tiny_image(), "红鱼", "猫")
    with pytest.raises(ValueError, match="beyond"):
        heat_map(model, processor, tiny_image(), "红鱼红鱼红鱼红鱼船", "船")
    with pytest.raises(ValueError, match="pre-ranking only"):
        heat_map(tiny_model(ranker=False), processor, tiny_image(), "红鱼")


def test_towers_without_cls():
    model = tiny_model("swin")
    found = heat_map(model, tiny_processor(), tiny_image(), "红鱼")
    assert found.weights.numel() == model.get_image_features(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape[1]
