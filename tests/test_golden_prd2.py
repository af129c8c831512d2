"""Every output of the authors' PRD2 code on the golden case, in float32: sdpa and eager, trimmed and padded to 64."""

import pytest
import torch

from tests import golden
from tests.golden import ATOL_SCALED, close

CASE = "prd2_l14"


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return golden.model(CASE, request.param)


@pytest.fixture(scope="module", params=["padded", "trimmed"])
def outputs(request, model):
    """(rows, output) of every batch of texts, each with all 6 images."""
    pixel_values = golden.arrays(CASE)["pixel_values"]
    with torch.no_grad():
        return [
            (group.pop("rows"), model(**group, pixel_values=pixel_values))
            for group in golden.text_groups(CASE, request.param == "trimmed")
        ]


def test_is_pre_ranking_only(model):
    assert not model.can_rank
    assert not hasattr(model, "text_image_encoder")


def test_tower_states_and_embeddings(outputs):
    expected = golden.arrays(CASE)
    for rows, output in outputs:
        states = output.text_model_output.last_hidden_state
        close(output.vision_model_output.last_hidden_state, expected["image_last_hidden_state"])
        close(states, expected["text_last_hidden_state"][rows, : states.shape[1]])
        close(output.image_embeds, expected["image_embed"])
        close(output.text_embeds, expected["text_embed"][rows])


def test_similarities_and_softmaxes(outputs):
    """6 images × 11 texts: the score of PRD2 is a softmax of the scaled similarities, either way."""
    expected = golden.arrays(CASE)
    per_image = torch.cat([output.logits_per_image for _, output in outputs], dim=1)
    per_text = torch.cat([output.logits_per_text for _, output in outputs])
    order = torch.cat([rows for rows, _ in outputs]).argsort()
    per_image, per_text = per_image[:, order], per_text[order]
    close(per_image, expected["sims_scaled"], ATOL_SCALED)
    close(per_image.softmax(dim=-1), expected["i2t_softmax"])
    close(per_text, expected["t2i_sims_scaled"], ATOL_SCALED)
    close(per_text.softmax(dim=-1), expected["t2i_softmax"])
