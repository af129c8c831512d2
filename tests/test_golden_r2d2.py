"""Every output of the authors' R2D2 code on the golden case, in float32: sdpa and eager, trimmed and padded to 64."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.integrations.official_names import official_name
from modeling_r2d2.model.losses_r2d2 import (
    HardNegatives,
    contrastive_targets,
    negative_logits,
    pre_ranking_loss,
    ranking_loss,
    same_identity,
    scaled_similarity,
)
from modeling_r2d2.model.modeling_r2d2 import normalize
from tests import golden
from tests.golden import ATOL_GRADIENT, ATOL_SCALED, close

CASE = "r2d2_b16"
PAIRS = 6  # of the retrieval step


@pytest.fixture(scope="module")
def expected():
    return golden.arrays(CASE)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return golden.model(CASE, request.param)


@pytest.fixture(scope="module", params=["padded", "trimmed"])
def trimmed(request):
    return request.param == "trimmed"


@pytest.fixture(scope="module")
def groups(model, trimmed, expected):
    """For every batch of texts its rows, its inputs (images of the same rows), `forward`'s and `match`'s outputs."""
    found = []
    for group in golden.text_groups(CASE, trimmed):
        rows = group.pop("rows")
        inputs = {**group, "pixel_values": expected["pixel_values"][rows]}
        with torch.no_grad():
            found.append((rows, inputs, model(**inputs), model.match(**inputs)))
    assert [inputs["input_ids"].shape[1] for _, inputs, *_ in found] == ([26, 64] if trimmed else [64])
    return found


@pytest.fixture(scope="module")
def pairs(trimmed, expected):
    """The first six pairs, of the retrieval step; their longest text has 26 tokens."""
    length = 26 if trimmed else 64
    batch = {name: expected[name][:PAIRS, :length] for name in ("input_ids", "attention_mask")}
    return {**batch, "pixel_values": expected["pixel_values"][:PAIRS]}


def test_attention_implementation_is_used(model):
    implementations = {
        module.config._attn_implementation
        for module in (model, model.vision_model, model.text_model, model.text_image_encoder, model.image_text_encoder)
    }
    assert len(implementations) == 1


def test_tower_states(groups, expected):
    for rows, inputs, output, _ in groups:
        length = inputs["input_ids"].shape[1]
        close(output.vision_model_output.last_hidden_state, expected["image_last_hidden_state"][rows])
        close(output.text_model_output.last_hidden_state, expected["text_last_hidden_state"][rows, :length])


def test_embeddings_and_similarities(groups, expected):
    for rows, _, output, _ in groups:
        close(output.image_embeds, expected["image_embed"][rows])
        close(output.text_embeds, expected["text_embed"][rows])
        close(output.image_embeds @ output.text_embeds.t(), expected["sims_cosine"][rows][:, rows])
        close(output.logits_per_image, expected["sims_scaled"][rows][:, rows], ATOL_SCALED)
        close(output.logits_per_text, expected["sims_scaled"].t()[rows][:, rows], ATOL_SCALED)


def test_token_type_ids_of_zeros_change_nothing(model, groups):
    for _, inputs, output, _ in groups:
        with torch.no_grad():
            given = model(**inputs, token_type_ids=torch.zeros_like(inputs["input_ids"]))
        close(given.text_embeds, output.text_embeds, 0)


def test_cross_encoder_states(groups, expected):
    for rows, inputs, _, match in groups:
        length = inputs["input_ids"].shape[1]
        text_states, image_states = match.text_cross_output, match.image_cross_output
        close(text_states.last_hidden_state, expected["pair_text_joint_last_hidden_state"][rows, :length])
        close(image_states.last_hidden_state, expected["pair_img_joint_last_hidden_state"][rows])


def test_match_logits_and_probabilities(groups, expected):
    for rows, _, output, match in groups:
        close(match.text_match_logits, expected["pair_itm_logits_t"][rows])
        close(match.image_match_logits, expected["pair_itm_logits_i"][rows])
        close(match.text_match_logits.softmax(dim=-1), expected["pair_itm_prob_t"][rows])
        close(match.image_match_logits.softmax(dim=-1), expected["pair_itm_prob_i"][rows])
        close(match.match_probability, expected["pair_match_score"][rows])
        cosine = (output.image_embeds * output.text_embeds).sum(dim=-1)
        close(match.match_probability + cosine, expected["pair_rank_score"][rows])


@pytest.mark.parametrize("cls_only", [False, True])
def test_one_image_against_every_text(model, groups, expected, cls_only):
    for rows, inputs, output, _ in groups:
        with torch.no_grad():
            image = model.get_image_features(expected["pixel_values"][:1])
            ranked = model.rank(
                output.text_model_output.last_hidden_state,
                image.last_hidden_state,
                inputs["attention_mask"],
                text_index=torch.arange(len(rows)),
                image_index=torch.zeros(len(rows), dtype=torch.long),
                cls_only=cls_only,
            )
        close(ranked.match_probability, expected["demo_image0_scores"][rows])


def official_gradients(model) -> dict[str, torch.Tensor | None]:
    """Official name -> gradient; None where there is none."""
    return {
        official_name(name): parameter.grad
        for name, parameter in model.named_parameters()
        if not name.startswith("mlm_head.")
    }


def check_gradients(model, step: str, expected) -> None:
    """The recorded gradients entirely, and the norm of every other parameter's."""
    gradients = official_gradients(model)
    recorded = {name.split("/")[1]: array for name, array in expected.items() if name.startswith(f"{step}_grad/")}
    assert recorded
    for name, array in recorded.items():
        close(gradients[name], array, ATOL_GRADIENT)
    norms = {name: gradient.norm().item() for name, gradient in gradients.items() if gradient is not None}
    # what the authors' model holds beyond ours (dead tables, poolers, post_layernorm) has no gradient
    assert norms == pytest.approx(
        {name: norm for name, norm in golden.meta(CASE)[f"{step}_grad_norms"].items() if norm is not None},
        abs=ATOL_GRADIENT,
    )


@pytest.fixture
def retrieval_model(model):
    """The converted weights with the pre-training objectives; image tower frozen, as in the authors' step."""
    pretraining = R2D2ForPreTraining(model.config).eval()
    left = pretraining.load_state_dict(model.state_dict(), strict=False)
    assert all(name.startswith("mlm_head.") for name in left.missing_keys)
    assert not left.unexpected_keys
    assert pretraining.config._attn_implementation == model.config._attn_implementation
    pretraining.vision_model.requires_grad_(False)
    return pretraining


def recorded_negatives(expected, step: str) -> HardNegatives:
    return HardNegatives(
        expected[f"{step}_neg_image_idx"],
        expected[f"{step}_neg_text_idx"],
        torch.ones(PAIRS, dtype=torch.bool),
    )


@pytest.mark.parametrize("step", ["retr_distinct", "retr_dup"])
class TestRetrievalStep:
    """GCPR + FGR on the first six pairs with the negatives that the authors' code had drawn."""

    def test_losses_and_gradients(self, retrieval_model, pairs, expected, step):
        output = retrieval_model(
            **pairs,
            image_ids=expected[f"{step}_idx"],
            hard_negatives=recorded_negatives(expected, step),
        )
        close(output.loss_gcpr, expected[f"{step}_loss_gcpr"])
        close(output.loss_fgr, expected[f"{step}_loss_fgr"])
        close(output.loss, expected[f"{step}_loss_gcpr"] + expected[f"{step}_loss_fgr"], 2 * golden.ATOL)
        output.loss.backward()
        check_gradients(retrieval_model, step, expected)
        close(retrieval_model.temperature, expected[f"{step}_temp_after"], 0)

    def test_loss_functions(self, model, pairs, expected, step):
        """The same numbers from the pure functions, the pairs being ranked one by one."""
        ids, negatives = expected[f"{step}_idx"], recorded_negatives(expected, step)
        with torch.no_grad():
            images = model.get_image_features(pairs["pixel_values"])
            encoded = model.get_text_features(pairs["input_ids"], pairs["attention_mask"])
            similarities = scaled_similarity(
                normalize(images.pooler_output), normalize(encoded.pooler_output), model.temperature
            )
            close(
                pre_ranking_loss(similarities, similarities.t(), contrastive_targets(same_identity(ids, ids))),
                expected[f"{step}_loss_gcpr"],
            )
            own = range(PAIRS)
            triples = [(i, i, 1) for i in own]
            triples += [(i, int(negatives.image_index[i]), 0) for i in own]
            triples += [(int(negatives.text_index[i]), i, 0) for i in own]
            ranked = [
                model.rank(
                    encoded.last_hidden_state[[text]],
                    images.last_hidden_state[[image]],
                    pairs["attention_mask"][[text]],
                )
                for text, image, _ in triples
            ]
            loss = ranking_loss(
                torch.cat([output.text_match_logits for output in ranked]),
                torch.cat([output.image_match_logits for output in ranked]),
                torch.tensor([label for *_, label in triples]),
            )
        close(loss, expected[f"{step}_loss_fgr"])

    def test_sampling_weights(self, model, pairs, expected, step):
        with torch.no_grad():
            per_image = model(**pairs).logits_per_image
        ids = expected[f"{step}_idx"]
        positives = same_identity(ids, ids)
        for logits, way in ((per_image, "i2t"), (per_image.t(), "t2i")):
            weights = expected[f"{step}_weights_{way}"]  # theirs are not renormalised, which changes no draw
            close(negative_logits(logits, positives).softmax(dim=1).double(), weights / weights.sum(1, keepdim=True))

    def test_recorded_negatives_are_negatives(self, expected, step):
        ids, negatives = expected[f"{step}_idx"], recorded_negatives(expected, step)
        assert (ids[negatives.image_index] != ids).all()
        assert (ids[negatives.text_index] != ids).all()


def test_matching_step(model, groups, expected):
    """The authors' loss is the cross-entropy *of the averaged probabilities*, a softmax of a softmax; it is
    reproduced here alone: `R2D2ForImageTextMatching` takes the cross-entropy of the logits."""
    model = deepcopy(model)
    model.vision_model.requires_grad_(False)
    matches = [model.match(**inputs) for _, inputs, *_ in groups]
    order = torch.cat([rows for rows, *_ in groups]).argsort()
    text_logits = torch.cat([match.text_match_logits for match in matches])[order]
    image_logits = torch.cat([match.image_match_logits for match in matches])[order]
    probabilities = (text_logits.softmax(dim=-1) + image_logits.softmax(dim=-1)) / 2
    close(probabilities, expected["matching_pred"])
    close(torch.cat([match.match_probability for match in matches])[order], expected["matching_pred"][:, 1])
    loss = nn.functional.cross_entropy(probabilities, expected["matching_targets"])
    close(loss, expected["matching_loss"])
    loss.backward()
    check_gradients(model, "matching", expected)


class TestGallery:
    """12 images × 20 texts; `evaluation` has its own tests of the two-stage search."""

    @pytest.fixture(scope="class")
    @staticmethod
    def gallery(model, trimmed, expected):
        """Images, texts and attention mask, encoded."""
        (group,) = golden.text_groups(CASE, trimmed, "gal_")
        assert group["input_ids"].shape[1] == (26 if trimmed else 64)
        with torch.no_grad():
            images = model.get_image_features(expected["gal_pixel_values"])
            encoded = model.get_text_features(group["input_ids"], group["attention_mask"])
        return images, encoded, group["attention_mask"]

    def test_cosines(self, gallery, expected):
        images, encoded, _ = gallery
        cosine = normalize(images.pooler_output) @ normalize(encoded.pooler_output).t()
        close(cosine, expected["gal_sims_matrix"])

    @pytest.mark.parametrize("candidates", [4, 12])
    @pytest.mark.parametrize("direction", ["i2t", "t2i"])
    def test_two_stage_scores(self, model, gallery, expected, candidates, direction):
        images, encoded, mask = gallery
        cosine = normalize(images.pooler_output) @ normalize(encoded.pooler_output).t()
        queries = cosine if direction == "i2t" else cosine.t()
        recorded = expected[f"gal_k{candidates}_score_{direction}"]
        chosen = torch.zeros_like(queries, dtype=torch.bool).scatter(1, queries.topk(candidates, dim=1).indices, True)
        assert torch.equal(chosen, recorded > -100)
        query, item = chosen.nonzero(as_tuple=True)
        image, text = (query, item) if direction == "i2t" else (item, query)
        with torch.no_grad():
            ranked = model.rank(
                encoded.last_hidden_state,
                images.last_hidden_state,
                mask,
                text_index=text,
                image_index=image,
                cls_only=True,
            )
        close(ranked.match_probability + queries[query, item], recorded[query, item])
