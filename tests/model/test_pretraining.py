"""R2D2ForPreTraining: the parts of the loss against separate passes, and its edge cases."""

import pytest
import torch
from torch import nn

from modeling_r2d2 import R2D2ForPreTraining, R2D2TargetGuidance, R2D2TeacherTargets
from modeling_r2d2.model.losses_r2d2 import HardNegatives
from tests.tiny import tiny_batch, tiny_config

NEGATIVES = HardNegatives(torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([5, 4, 0, 2, 1, 3]), torch.ones(6).bool())


def model(tower: str = "clip", **kwargs) -> R2D2ForPreTraining:
    torch.manual_seed(0)
    return R2D2ForPreTraining(tiny_config(tower, **kwargs)).eval()


def test_total_is_the_weighted_sum_of_the_parts():
    batch = tiny_batch()
    output = model()(**batch, hard_negatives=NEGATIVES)
    assert output.loss.item() == pytest.approx((output.loss_gcpr + output.loss_fgr + output.loss_mlm).item(), rel=1e-6)
    halved = model(fgr_weight=0.5, mlm_weight=2.0, gcpr_weight=0.0)(**batch, hard_negatives=NEGATIVES)
    assert halved.loss.item() == pytest.approx((0.5 * output.loss_fgr + 2 * output.loss_mlm).item(), rel=1e-5)


@pytest.mark.parametrize("rank_masked_texts", [True, False])
def test_ranking_and_mlm_equal_separate_passes(rank_masked_texts):
    """The naive arrangement: every encoder on copied states, MLM in a pass of its own."""
    full = model(rank_masked_texts=rank_masked_texts)
    batch = tiny_batch()
    mask = batch["attention_mask"]
    output = full(**batch, hard_negatives=NEGATIVES)

    images = full.get_image_features(batch["pixel_values"]).last_hidden_state
    texts = full.get_text_features(batch["input_ids"], mask).last_hidden_state
    masked = full.get_text_features(batch["masked_input_ids"], mask).last_hidden_state
    queries = masked if rank_masked_texts else texts
    own = torch.arange(6)
    text_index = torch.cat([own, own, NEGATIVES.text_index])
    image_index = torch.cat([own, NEGATIVES.image_index, own])
    labels = torch.tensor([1] * 6 + [0] * 12)
    from_texts = full.rank(queries[text_index], images[image_index], mask[text_index]).text_match_logits
    from_images = full.rank(texts[text_index], images[image_index], mask[text_index]).image_match_logits
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    expected = (criterion(from_texts, labels) + criterion(from_images, labels)) / 2
    torch.testing.assert_close(output.loss_fgr, expected, rtol=1e-5, atol=1e-6)

    states = full.rank(masked, images, mask).text_cross_output.last_hidden_state
    logits = full.mlm_head(states)
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), batch["mlm_labels"], ignore_index=-100)
    torch.testing.assert_close(output.loss_mlm, expected, rtol=1e-5, atol=1e-6)


def test_captions_of_one_image_are_never_negatives():
    batch = tiny_batch()
    batch["image_ids"] = torch.tensor([0, 0, 0, 0, 0, 9])
    full = model()
    seen = []
    full.text_image_encoder.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    full(**batch)
    text_index, image_index = seen[0]["query_index"], seen[0]["context_index"]
    assert image_index[6:11].tolist() == [5] * 5
    assert text_index[12:17].tolist() == [5] * 5
    assert 5 not in (image_index[11].item(), text_index[17].item())


def test_a_batch_with_one_single_id_trains_on_its_positives():
    batch = tiny_batch()
    batch["image_ids"] = torch.zeros(6, dtype=torch.int64)
    output = model()(**batch)
    assert torch.isfinite(output.loss)
    true_pairs = model()(**batch, hard_negatives=HardNegatives(*NEGATIVES[:2], torch.zeros(6).bool()))
    torch.testing.assert_close(output.loss_fgr, true_pairs.loss_fgr)
    one = tiny_batch(pairs=1)
    assert torch.isfinite(model()(**one).loss)


def test_without_masks_there_is_no_mlm():
    output = model()(**tiny_batch(masked=False))
    assert output.loss_mlm is None
    batch = tiny_batch()
    del batch["mlm_labels"]
    with pytest.raises(ValueError, match="come together"):
        model()(**batch)


def test_prd2_trains_by_pre_ranking_alone():
    output = model(ranker=False)(**tiny_batch())
    assert output.loss_fgr is None
    assert output.loss.item() == output.loss_gcpr.item()


def test_teacher_targets_replace_gcpr():
    """TgD with the batch itself as candidates and hard targets is GCPR."""
    batch = tiny_batch()
    full = model()
    plain = full(**batch, hard_negatives=NEGATIVES)
    guidance = R2D2TargetGuidance(
        image_candidates=plain.image_embeds.detach(),
        text_candidates=plain.text_embeds.detach(),
        image_targets=torch.eye(6),
        text_targets=torch.eye(6),
    )
    teacher = R2D2TeacherTargets(target_guided=guidance)
    guided = full(**batch, hard_negatives=NEGATIVES, teacher=teacher)
    assert guided.loss_gcpr is None
    torch.testing.assert_close(guided.loss_tgd, plain.loss_gcpr)


def test_pairs_must_be_aligned():
    batch = tiny_batch()
    batch["image_ids"] = batch["image_ids"][:4]
    with pytest.raises(ValueError, match="6 images, 6 texts, 4 image_ids"):
        model()(**batch)


def test_draws_follow_the_seed():
    batch = tiny_batch()
    losses = {}
    for training in (True, False):
        full = model().train(training)
        for run, seed in enumerate((1, 1, 2)):
            torch.manual_seed(seed)
            losses[training, run] = full(**batch).loss_fgr.item()
    assert losses[True, 0] == losses[True, 1] != losses[True, 2]
    assert losses[False, 0] == losses[False, 1] == losses[False, 2]  # the hardest negatives in evaluation mode


def test_temperature_is_put_back_within_its_bounds_while_training():
    full = model().train()
    with torch.no_grad():
        full.temperature.fill_(0.9)
    output = full(**tiny_batch())
    assert full.temperature.item() == pytest.approx(0.5)
    output.loss.backward()
    assert full.temperature.grad.item() != 0
    full.eval()
    with torch.no_grad():
        full.temperature.fill_(0.9)
        assert full(**tiny_batch()).temperature.item() == pytest.approx(0.5)
    assert full.temperature.item() == pytest.approx(0.9)


def test_every_parameter_learns():
    full = model().train()
    full(**tiny_batch()).loss.backward()
    without = [name for name, parameter in full.named_parameters() if parameter.grad is None]
    assert without == []


def test_activation_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        full = model().train()
        if checkpointing:
            full.gradient_checkpointing_enable()  # the name in all supported versions
        full(**tiny_batch(), hard_negatives=NEGATIVES).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in full.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_autocast_keeps_the_losses_in_float32():
    """Stated tolerance: under bf16 autocast every part of the loss stays within 2 % of float32."""
    full, batch = model(), tiny_batch()
    exact = full(**batch, hard_negatives=NEGATIVES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = full(**batch, hard_negatives=NEGATIVES)
    for name in ("loss_gcpr", "loss_fgr", "loss_mlm", "loss"):
        assert mixed[name].dtype is torch.float32
        torch.testing.assert_close(mixed[name], exact[name], rtol=0.02, atol=0)
