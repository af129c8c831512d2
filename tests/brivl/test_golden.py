"""Every output of the authors' programs on the small cases, in float32, within the records' tolerances."""

import pytest
import torch

from modeling_r2d2.model.modeling_brivl import box_grid, grid_pooled
from tests.brivl import golden
from tests.brivl.golden import CASES, arrays, meta, pairs, processor

ATOL = 1e-5


def close(actual, expected, atol=ATOL):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.fixture(
    scope="module", params=[(case, attention) for case in CASES for attention in ("sdpa", "eager")], ids=str
)
def run(request):
    """Of a case: its name, the model, and what it makes of the recorded inputs."""
    case, attention = request.param
    model, recorded = golden.model(case, attention=attention), arrays(case)
    with torch.no_grad():
        output = model(
            pixel_values=recorded["pixel_values"],
            boxes=recorded["boxes"],
            box_mask=recorded["box_mask"],
            input_ids=recorded["input_ids"],
            attention_mask=recorded["text_mask"],
        )
    return case, model, output


def test_map_and_regions(run):
    case, model, _ = run
    recorded, tower = arrays(case), model.vision_model
    with torch.no_grad():
        feature_map = tower.backbone.feature_map(recorded["pixel_values"])
        close(feature_map, recorded["image_feature_map"], 2e-4)
        means = grid_pooled(feature_map, recorded["boxes"], tower.config.image_size, tower.config.region_grid)
        real = recorded["box_mask"].bool()
        close(tower.region_projection(means)[real], recorded["image_regions"][real], 5e-5)


def test_states(run):
    """Of the transformers, where they are real."""
    case, _, output = run
    recorded = arrays(case)
    for states, kind in (
        (output.vision_model_output.last_hidden_state, "image"),
        (output.text_model_output.last_hidden_state, "text"),
    ):
        real = recorded["box_mask" if kind == "image" else "text_mask"].bool()
        close(states[real], recorded[f"{kind}_transformer_output"][real], 5e-5)


def test_embeddings_and_cosines(run):
    case, model, output = run
    recorded = arrays(case)
    close(output.image_embeds, recorded["image_embed"])
    close(output.text_embeds, recorded["text_embed"], 1e-6 if case == "brivl_120" else ATOL)
    close(output.logits_per_image * model.temperature, recorded["sims_cosine"])


@torch.no_grad()
def test_padding_makes_no_difference(run):
    """A text that comes trimmed is padded within the model, and neither what padding boxes hold nor their number nor
    the order of boxes matters."""
    case, model, output = run
    recorded = arrays(case)
    rows = recorded["trimmed_rows"]
    longest = int(recorded["text_lengths"][rows].max())
    trimmed = model(recorded["input_ids"][rows, :longest], attention_mask=recorded["text_mask"][rows, :longest])
    close(trimmed.text_embeds, recorded["text_embed"][rows], 1e-6)
    assert (trimmed.text_embeds - recorded["text_embed_trimmed"]).abs().max() > 0.01  # what must not happen
    boxes, mask = recorded["boxes"], recorded["box_mask"]
    other = torch.where(mask.bool()[:, :, None], boxes, 5.0)
    more = torch.cat([other, torch.ones_like(other[:, :2])], dim=1).flip(1)
    images = {"boxes": more, "box_mask": torch.cat([mask, torch.zeros_like(mask[:, :2])], dim=1).flip(1)}
    close(model(pixel_values=recorded["pixel_values"], **images).image_embeds, output.image_embeds, 2e-6)


@torch.no_grad()
def test_without_boxes_it_is_the_second_program(run):
    case, model, _ = run
    recorded = arrays(case)
    count = int(recorded["nmi_box_length"])
    grid = box_grid(model.config.vision_config.box_grid, model.config.vision_config.image_size)
    close(grid, recorded["nmi_boxes"][:count].float(), 0)
    close(model(pixel_values=recorded["pixel_values"]).image_embeds, recorded["nmi_image_embed"])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_second_program_pads_texts_otherwise(case):
    model = golden.model(case, max_text_length=meta(case)["nmi"]["max_text_length"])
    recorded = arrays(case)
    close(model(recorded["nmi_input_ids"]).text_embeds, recorded["nmi_text_embed"])


@pytest.mark.parametrize("case", CASES)
def test_preprocessing(case):
    """Pictures of any mode and boxes wherever they lie, as the authors' data set class makes them."""
    recorded = arrays(case)
    examples = pairs(case)
    made = processor(case)(
        images=[each["image"] for each in examples],
        text=[each["text"] for each in examples],
        boxes=[each["boxes"] for each in examples],
        return_tensors="pt",
    )
    close(made["pixel_values"], recorded["pixel_values"], 1e-6)
    for name, mine in (("boxes", made["boxes"]), ("box_mask", made["box_mask"].float())):
        close(mine, recorded[name][:, : mine.shape[1]], 0)
        assert not recorded[name][:, mine.shape[1] :].any()
    for name, mine in (("input_ids", made["input_ids"]), ("text_mask", made["attention_mask"].float())):
        close(mine, recorded[name][:, : mine.shape[1]], 0)
        assert not recorded[name][:, mine.shape[1] :].any()
