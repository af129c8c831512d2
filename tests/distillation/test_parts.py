"""Queue, centre, schedules, teacher and masks, each alone."""

import math

import numpy as np
import pytest
import torch

from modeling_r2d2 import R2D2FeatureGuidance, R2D2ForPreTraining
from modeling_r2d2.distillation import (
    DistillationState,
    FeatureCenter,
    FeatureGuidedSettings,
    FeatureQueue,
    MomentumTeacher,
    RisingMomentum,
    Schedule,
    TargetGuidedSettings,
)
from modeling_r2d2.model.batch_norms_r2d2 import batch_norms
from modeling_r2d2.model.masked_images_r2d2 import draw_kept, drops_patches, gray_blocks, mask_grid
from tests.tiny import TOWERS, tiny_batch, tiny_config


def features(first: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows whose values tell which pair they are."""
    ids = torch.arange(first, first + rows)
    return ids[:, None].float().repeat(1, 2), -ids[:, None].float().repeat(1, 2), ids


def test_queue_keeps_the_last_pairs_and_their_reliability():
    queue = FeatureQueue(size=4, batch=3, width=2)
    assert queue.measures() == {"queue_fill": 0.0, "queue_reliability": 0.0}
    age: dict[int, float] = {}
    for step in range(6):
        images, texts, ids = features(3 * step, 3)
        queue.push(images, texts, ids)
        held_images, held_texts, held_ids, reliability = queue.candidates()
        age.update(dict.fromkeys(ids.tolist(), 1.0))
        last = list(age)[-7:]
        assert sorted(held_ids.tolist()) == last
        assert held_images[:, 0].tolist() == held_ids.tolist()
        assert held_texts[:, 1].tolist() == [-i for i in held_ids.tolist()]
        assert reliability.tolist() == pytest.approx([age[i] for i in held_ids.tolist()])
        queue.age(0.9)
        age = {i: weight * 0.9 for i, weight in age.items()}
    assert queue.measures()["queue_fill"] == 1.0


def test_candidates_are_views():
    queue = FeatureQueue(size=4, batch=2, width=2)
    queue.push(*features(0, 2))
    assert queue.candidates()[0].data_ptr() == queue.images.data_ptr()


def test_short_and_too_long_batches():
    queue = FeatureQueue(size=3, batch=2, width=2)
    for first, rows in ((0, 2), (2, 1), (3, 2), (5, 1), (6, 2)):
        queue.push(*features(first, rows))
    assert sorted(queue.candidates()[2].tolist()) == [3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="3 pairs at once, but the queue was made for a batch of at most 2"):
        queue.push(*features(8, 3))


def test_queue_without_earlier_pairs_is_the_batch():
    queue = FeatureQueue(size=0, batch=2, width=2)
    for first in (0, 2):
        queue.push(*features(first, 2))
        assert queue.candidates()[2].tolist() == [first, first + 1]


def test_ids_of_pairs_without_ids_never_repeat():
    queue = FeatureQueue(size=4, batch=2, width=2)
    seen = []
    for _ in range(5):
        ids = queue.new_ids(2)
        queue.push(*features(0, 2)[:2], ids)
        seen += ids.tolist()
    assert len(set(seen)) == 10
    assert max(seen) < 0


def test_queue_goes_on_where_its_state_was_saved():
    first, second = FeatureQueue(3, 2, 2), FeatureQueue(3, 2, 2)
    for start in (0, 2, 4):
        first.push(*features(start, 2))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.push(*features(6, 2))
    assert torch.equal(first.ids, second.ids)
    assert first.filled == second.filled


def test_center_is_the_moving_mean_over_the_micro_batches():
    rng = np.random.default_rng(0)
    center = FeatureCenter(3, momentum=0.9)
    images, texts = np.zeros(3), np.zeros(3)
    for _ in range(4):
        parts = [(rng.normal(size=(rows, 3)), rng.normal(size=(rows, 3))) for rows in (4, 2)]
        for image_part, text_part in parts:
            center.collect(torch.tensor(image_part), torch.tensor(text_part))
        center.commit()
        images = 0.9 * images + 0.1 * np.concatenate([p[0] for p in parts]).mean(axis=0)
        texts = 0.9 * texts + 0.1 * np.concatenate([p[1] for p in parts]).mean(axis=0)
    np.testing.assert_allclose(center.images, images, rtol=1e-5)
    np.testing.assert_allclose(center.texts, texts, rtol=1e-5)
    before = center.images.clone()
    center.collect(torch.ones(1, 3), torch.ones(1, 3))
    center.discard()
    center.commit()  # of nothing
    assert torch.equal(center.images, before)


def test_schedules():
    linear, cosine = Schedule(0.0, 0.4, 10), Schedule(0.99, 1.0, 10, "cosine")
    assert [linear(step) for step in (0, 5, 10, 99)] == pytest.approx([0.0, 0.2, 0.4, 0.4])
    assert cosine(0) == pytest.approx(0.99)
    assert cosine(5) == pytest.approx(0.995)
    assert cosine(2) == pytest.approx(1 - 0.01 * (1 + math.cos(math.pi * 0.2)) / 2)
    assert cosine(10) == 1.0
    later = Schedule(0.2, 0.4, 10, begin=5)
    assert [later(step) for step in (0, 5, 10, 15, 99)] == pytest.approx([0.2, 0.2, 0.3, 0.4, 0.4])
    assert [Schedule(0.0, 0.4, begin=5)(step) for step in (4, 5)] == [0.0, 0.4]
    rising = RisingMomentum(0.9)
    assert [rising(step) for step in (0, 1, 35, 79, 80, 1000)] == pytest.approx([0.1, 2 / 11, 0.8, 80 / 89, 0.9, 0.9])


@pytest.mark.parametrize("tower", ["clip", "resnet"])
def test_teacher_is_the_moving_average(tower):
    torch.manual_seed(0)
    student = R2D2ForPreTraining(tiny_config(tower, dropout=0.1)).train()
    teacher = MomentumTeacher(student)
    assert not any(name.startswith(("text_image", "image_text", "mlm")) for name in teacher.model.state_dict())
    assert not any(p.requires_grad for p in teacher.parameters())
    state = dict(teacher.model.state_dict())  # weights and running statistics
    expected = {name: value.double().numpy() for name, value in state.items() if value.is_floating_point()}
    student.vision_model.requires_grad_(True)
    student.text_projection.requires_grad_(False)
    for _ in range(3):
        student(**tiny_batch())  # moves running statistics
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        teacher.update(student, 0.9)
        theirs = student.state_dict()
        expected = {name: 0.9 * value + 0.1 * theirs[name].double().numpy() for name, value in expected.items()}
    assert any(name.endswith("running_var") for name in expected) == (tower == "resnet")
    for name, value in teacher.model.state_dict().items():
        if name in expected:
            np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert torch.equal(value, theirs[name]), name


def test_running_statistics_belong_to_the_weights_of_the_teacher():
    """A tower that is trained already goes on, its teacher a long way behind: with the average of the student's running
    statistics it sees what its own batch statistics would show it, with the student's latest ones it does not."""
    torch.manual_seed(3)
    student = R2D2ForPreTraining(tiny_config("resnet", ranker=False)).train()
    batch = tiny_batch(pairs=24, masked=False)
    given = batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)

    def step():
        student(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(40):
        step()
    for _ in range(60):
        student(**batch)  # the statistics settle
    teacher = MomentumTeacher(student)
    optimizer.param_groups[0]["lr"] = 1e-2
    for _ in range(40):
        step()
        teacher.update(student, 0.995)

    def seen() -> tuple[torch.Tensor, float]:
        features = teacher.encode(*given)
        similarity = features.image_embeds @ features.text_embeds.T
        return features.image_embeds, (similarity.argmax(dim=1) == torch.arange(24)).float().mean().item()

    averaged, recall = seen()
    held = dict(teacher.model.named_buffers())
    kept = {name: value.clone() for name, value in held.items()}
    for norm in batch_norms(teacher.model).values():
        norm.train()
    own, _ = seen()
    teacher.eval()
    for name, value in student.named_buffers():
        if name in held:
            held[name].copy_(value)
    copied, recall_of_copied = seen()
    for name, value in kept.items():
        held[name].copy_(value)
    assert torch.equal(seen()[0], averaged)
    assert (averaged * own).sum(dim=1).mean() > 0.99 > 0.95 > (copied * own).sum(dim=1).mean()
    assert recall > recall_of_copied + 0.1


def test_teacher_never_leaves_evaluation_mode_and_draws_no_random_number():
    student = R2D2ForPreTraining(tiny_config(dropout=0.5)).train()
    teacher = MomentumTeacher(student).train()
    assert not any(module.training for module in teacher.modules())
    batch = tiny_batch()
    before = torch.get_rng_state()
    views = [teacher.encode(batch["pixel_values"], batch["input_ids"], batch["attention_mask"]) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(views[0].image_embeds, views[1].image_embeds)


def test_teacher_in_chunks():
    torch.manual_seed(0)
    teacher = MomentumTeacher(R2D2ForPreTraining(tiny_config(fgd_prototypes=48)))
    batch = tiny_batch()
    arguments = (batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
    whole = teacher.encode(*arguments, feature_guided=True)
    chunked = teacher.encode(*arguments, feature_guided=True, chunk=4)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(chunked, name), value, rtol=1e-5, atol=1e-6)


def test_teacher_of_a_bfloat16_student_averages_in_single_precision():
    student = R2D2ForPreTraining(tiny_config()).to(torch.bfloat16)
    teacher = MomentumTeacher(student)
    weight, before = student.text_projection.weight, teacher.model.text_projection.weight.clone()
    with torch.no_grad():
        weight.add_(1.0)
    for _ in range(10):
        teacher.update(student, 0.999)
    moved = (teacher.model.text_projection.weight - before).mean().item()
    assert moved == pytest.approx(1 - 0.999**10, rel=0.02)
    batch = tiny_batch()
    assert teacher.encode(batch["pixel_values"], batch["input_ids"]).image_embeds.dtype == torch.float32


@pytest.mark.parametrize("tower", ["clip", "swin", "resnet", "convnext"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_feature_guidance_does_not_swamp_the_other_objectives(tower, seed):
    """On fresh towers, whose features nothing bounds: its gradient is of the order of TgD's and FGR's."""
    torch.manual_seed(seed)
    model = R2D2ForPreTraining(tiny_config(tower, fgd_prototypes=384)).train()
    settings = TargetGuidedSettings(queue_size=0), FeatureGuidedSettings(block=8)
    state, batch = DistillationState(model, *settings, batch=16), tiny_batch(pairs=16, seed=seed)
    for step in range(2):  # against a center of nothing, and of what was seen
        output = model(**batch, teacher=state.targets(batch, step, model.current_temperature(), 0.4))
        state.commit(model, 0.99)
        for part in (model.vision_model, model.text_model):
            weights = list(part.parameters())
            norms = {}
            for name in ("loss_tgd", "loss_fgr", "loss_fgd"):
                found = torch.autograd.grad(output[name], weights, retain_graph=True, allow_unused=True)
                norms[name] = torch.nn.utils.get_total_norm([g for g in found if g is not None]).item()
            assert 0 < norms["loss_fgd"] < 2 * max(norms["loss_tgd"], norms["loss_fgr"])


def test_kept_cells():
    kept = draw_kept(50, 16, 0.5, torch.Generator().manual_seed(0))
    assert kept.shape == (50, 8)
    assert (kept.diff(dim=1) > 0).all()
    counts = torch.bincount(kept.flatten(), minlength=16)
    assert counts.min() > 12  # every cell is kept about half the time
    assert draw_kept(2, 16, 0.0).tolist() == [list(range(16))] * 2
    with pytest.raises(ValueError, match="share of dropped patches"):
        draw_kept(2, 16, 1.0)


def test_gray_blocks():
    pixels = torch.ones(2, 3, 5, 7)
    kept = torch.tensor([[0], [5]])
    masked = gray_blocks(pixels, kept, (2, 3))
    assert sorted(set(masked.flatten().tolist())) == [-1, 1]
    masked = (masked + 1) / 2
    assert masked[0].sum() == 3 * 9
    assert masked[0, :, :3, :3].all()
    assert masked[1, :, 3:, 6:].all()
    assert masked[1].sum() == 3 * 2 * 1


@pytest.mark.parametrize("tower", TOWERS)
def test_masked_pass_of_every_tower(tower):
    """All patches kept is the whole image; towers that drop patches compute the kept ones alone."""
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config(tower, fgd_prototypes=48)).eval()
    pixels = tiny_batch()["pixel_values"]
    grid = mask_grid(model.config.vision_config, (32, 32), 8)
    tokens = []
    model.vision_model.register_forward_hook(
        lambda module, arguments, output: tokens.append(output.last_hidden_state.flatten(2).shape)
    )

    def masked(kept: torch.Tensor) -> torch.Tensor:
        guidance = R2D2FeatureGuidance(image_targets=None, text_targets=None, kept=kept, block=8)
        return model.encode_masked_images(pixels, guidance)

    cells = grid[0] * grid[1]
    states = model.get_image_features(pixels).last_hidden_state
    whole = model.feature_heads.image(states[:, 0] if model.config.vision_pooling == "cls" else states.mean(dim=1))
    torch.testing.assert_close(masked(torch.arange(cells).repeat(6, 1)), whole, rtol=1e-5, atol=1e-5)
    assert (masked(draw_kept(6, cells, 0.5)) - whole).abs().max() > 1e-4
    dropped = tokens[0][1] - tokens[2][1]
    assert dropped == (cells // 2 if drops_patches(model.config.vision_config) else 0)


def test_texts_are_compared_by_what_pre_ranking_reads():
    """The student's masked texts and the teacher's: padding has no part in the mean."""
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config(text_pooling="mean", fgd_prototypes=16)).eval()
    batch = tiny_batch()
    ids, mask = batch["masked_input_ids"], batch["attention_mask"]
    with torch.no_grad():
        states = model.get_text_features(ids, mask).last_hidden_state
        mean = np.stack([row[: int(n)].mean(0) for row, n in zip(states.numpy(), mask.sum(1), strict=True)])
        wanted = model.feature_heads.text(torch.from_numpy(mean))
        features = model.encode_pairs(
            **{name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask", "masked_input_ids")},
            feature_guided=True,
        )
        _, teacher = model.compared_features(torch.zeros(1, 5, 24), states, mask)
    torch.testing.assert_close(features.text_student, wanted)
    torch.testing.assert_close(teacher, wanted)
    with pytest.raises(ValueError, match="reads its 'last': leave it out"):
        R2D2ForPreTraining(tiny_config(text_pooling="last", fgd_prototypes=16))


def test_dropped_patches_do_not_reach_the_student():
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config("clip", fgd_prototypes=48)).eval()
    pixels, kept = tiny_batch()["pixel_values"], torch.tensor([[1, 2]]).repeat(6, 1)
    guidance = R2D2FeatureGuidance(image_targets=None, text_targets=None, kept=kept)
    first = model.encode_masked_images(pixels, guidance)
    changed = pixels.clone()
    changed[:, :, :16, :16] = 9.0  # patch 0
    torch.testing.assert_close(model.encode_masked_images(changed, guidance), first)
    changed[:, :, :16, 16:] = 9.0  # patch 1
    assert (model.encode_masked_images(changed, guidance) - first).abs().max() > 1e-3


def test_masked_images_leave_running_statistics_alone():
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config("resnet", fgd_prototypes=48)).train()
    guidance = R2D2FeatureGuidance(image_targets=None, text_targets=None, kept=torch.tensor([[0]] * 6), block=8)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.encode_masked_images(tiny_batch()["pixel_values"], guidance)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model.get_image_features(tiny_batch()["pixel_values"])
    assert not torch.equal(
        dict(model.named_buffers())["vision_model.embedder.embedder.normalization.running_mean"],
        before["vision_model.embedder.embedder.normalization.running_mean"],
    )
