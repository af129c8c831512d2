"""Large contrastive batches in little memory: the whole batch is compared, a chunk of it is held.

As GradCache (arXiv 2101.06983): the towers encode the batch chunk by chunk without gradient; the losses that look
across the batch are computed from what they gave, and their gradients kept; then each chunk passes the towers again,
with gradient, and carries its part of those gradients to the weights. The result is the gradient of the undivided
step; the price is one more forward pass of the towers. Here it covers every objective of R2D2: FGR draws its
negatives from the whole batch, so states are kept as embeddings are, and ranking goes chunk by chunk as well.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model.batch_norms_r2d2 import batch_norms
from ..model.distributed_r2d2 import world_size
from ..model.losses_r2d2 import HardNegatives, match_weights
from ..model.pretraining_r2d2 import (
    R2D2ForPreTraining,
    R2D2ForPreTrainingOutput,
    R2D2TeacherTargets,
    fetch_drawn_states,
)

#: What `encode_pairs` gives per pair and later objectives read.
_CACHED = ("image_embeds", "text_embeds", "image_states", "text_states", "masked_states")


def refuse_batch_statistics(model: nn.Module):
    """Batch norms see a chunk, not the batch: the gradient could not be that of the undivided step.

    Raises:
        ValueError: names a batch norm that is in training mode.
    """
    for name, norm in batch_norms(model).items():
        if norm.training:
            raise ValueError(
                f"gradient caching in chunks cannot reproduce the batch statistics of {name}: freeze that tower "
                "(its batch norms in evaluation mode), choose a tower without them, or train without grad_cache_chunk"
            )


def cached_backward(
    model: R2D2ForPreTraining,
    batch: dict[str, Any],
    chunk: int,
    teacher: R2D2TeacherTargets | None = None,
    hard_negatives: HardNegatives | None = None,
    scale: float = 1.0,
) -> R2D2ForPreTrainingOutput:
    """Forward and backward pass of all objectives over a batch of B local pairs, `chunk` pairs at a time.

    Gradients are added to `parameter.grad` as by `(scale * model(**batch).loss).backward()`; over several workers they
    still have to be averaged. Peak memory beyond the B × N similarities and the cached states of the towers is that
    of a chunk.

    Args:
        model: the unwrapped model, in training mode.
        batch: as `R2D2ForPreTraining.forward` takes it.
        teacher: as there.
        hard_negatives: as there.
        scale: factor of the gradients (loss scaling, gradient accumulation).

    Returns:
        losses without gradient, embeddings of the whole batch; no logits.

    Raises:
        ValueError: a tower with batch statistics.
    """
    refuse_batch_statistics(model)
    teacher = teacher or R2D2TeacherTargets()
    feature_guided = teacher.feature_guided is not None
    inputs: dict[str, Any] = {
        name: batch.get(name) for name in ("input_ids", "pixel_values", "attention_mask", "masked_input_ids")
    }
    inputs["token_type_ids"] = batch.get("token_type_ids")
    rows = len(inputs["input_ids"])
    chunks = [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]

    cache, random_states = _encode_without_gradient(model, inputs, chunks, feature_guided)
    gradients = {name: torch.zeros_like(value) for name, value in cache.items() if name.endswith("states")}
    embeds = {name: cache[name].requires_grad_() for name in ("image_embeds", "text_embeds")}
    image_embeds, text_embeds = embeds.values()
    found, losses = model.compare_pairs(image_embeds, text_embeds, batch.get("image_ids"), teacher.target_guided)
    (scale * model.total_loss(losses)).backward()
    gradients |= {name: _gradient(leaf) for name, leaf in embeds.items()}
    losses = {name: loss.detach() for name, loss in losses.items()}
    accuracy = None
    if model.trains_ranking:
        negatives = hard_negatives or model.pick_negatives(*found)
        del found
        ranking = _rank_chunks(model, batch, cache, gradients, negatives, chunks, scale)
        accuracy = ranking.pop("ranking_accuracy")
        losses |= ranking
    after = _random_state(inputs["pixel_values"])
    cache.clear()
    losses |= _encode_with_gradient(model, inputs, chunks, teacher, gradients, random_states, scale)
    _restore_random_state(after)
    parts: dict[str, Any] = losses | {name: leaf.detach() for name, leaf in embeds.items()}
    return R2D2ForPreTrainingOutput(
        loss=model.total_loss(losses), ranking_accuracy=accuracy, temperature=model.current_temperature(), **parts
    )


def average_gradients(model: nn.Module):
    """Mean of the gradients over the workers, as DistributedDataParallel would take it."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        work.wait()
    torch._foreach_div_(gradients, world_size())


def _part(inputs: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: None if value is None else value[rows] for name, value in inputs.items()}


@torch.no_grad()
def _encode_without_gradient(
    model: R2D2ForPreTraining,
    inputs: dict[str, Any],
    chunks: list[slice],
    feature_guided: bool,
) -> tuple[dict[str, Tensor], list]:
    """What the towers give for the whole batch, and the random state ahead of every chunk (dropout)."""
    cache: dict[str, Tensor] = {}
    random_states = []
    wanted = _CACHED if model.trains_ranking else _CACHED[:2]
    for rows in chunks:
        random_states.append(_random_state(inputs["pixel_values"]))
        features = model.encode_pairs(**_part(inputs, rows), feature_guided=feature_guided)
        for name in wanted:
            if (value := getattr(features, name)) is not None:
                if name not in cache:
                    cache[name] = value.new_empty((len(inputs["input_ids"]), *value.shape[1:]))
                cache[name][rows] = value
    return cache, random_states


def _rank_chunks(
    model: R2D2ForPreTraining,
    batch: dict[str, Any],
    cache: dict[str, Tensor],
    gradients: dict[str, Tensor],
    negatives: HardNegatives,
    chunks: list[slice],
    scale: float,
) -> dict[str, Tensor]:
    """FGR and MLM chunk by chunk; adds the gradients of the states to `gradients`. Returns both losses and the
    ranking accuracy of the whole batch."""
    labels, mask, valid = batch.get("mlm_labels"), batch.get("attention_mask"), negatives.valid
    masked_queries = model.config.rank_masked_texts and "masked_states" in cache
    asking = "masked_states" if masked_queries else "text_states"
    names = tuple(dict.fromkeys((asking, "text_states", "image_states")))
    if mask is None:
        mask = torch.ones(cache["text_states"].shape[:2], dtype=torch.int64, device=valid.device)
    sources, targets = {name: cache[name] for name in names}, {name: gradients[name] for name in names}
    text_index, image_index = negatives.text_index, negatives.image_index
    if world_size() > 1:  # drawn rows of other workers are fetched once; their gradients go home at the end
        local = {name: cache[name].requires_grad_() for name in names}
        (asked, texts, mask, images), text_index, image_index = fetch_drawn_states(
            local[asking], local["text_states"], mask, local["image_states"], negatives
        )
        fetched = {asking: asked, "text_states": texts, "image_states": images}
        sources = {name: value.detach() for name, value in fetched.items()}
        targets = {name: torch.zeros_like(value) for name, value in sources.items()}
    pair_weight = match_weights(torch.ones_like(valid)).sum() + 2 * valid.sum().float()
    masked_count = None if labels is None else (labels != -100).sum().float()
    total: dict[str, Tensor] = {}
    for rows in chunks:
        own = torch.arange(rows.start, rows.stop, device=valid.device)
        drawn = torch.arange(len(own), 2 * len(own), device=valid.device)  # behind the chunk's own rows
        text_rows = torch.cat([own, text_index[rows]])
        index = dict.fromkeys(names, text_rows) | {"image_states": torch.cat([own, image_index[rows]])}
        leaves = {name: sources[name].index_select(0, index[name]).requires_grad_() for name in names}
        apart = None  # masked texts that MLM alone reads
        if labels is not None and not masked_queries:
            apart = cache["masked_states"][rows].detach().requires_grad_()
        losses, accuracy = model.rank_pairs(
            leaves[asking],
            leaves["text_states"],
            leaves["image_states"],
            mask.index_select(0, text_rows),
            HardNegatives(drawn, drawn, valid[rows]),
            masked_states=apart,
            mlm_labels=None if labels is None else labels[rows],
            pair_weight=pair_weight,
            masked_count=masked_count,
        )
        (scale * model.total_loss(losses)).backward()
        for name, leaf in leaves.items():
            targets[name].index_add_(0, index[name], _gradient(leaf))
        if apart is not None:
            gradients["masked_states"][rows] += _gradient(apart)
        share = (len(own) + 2 * valid[rows].sum()) / (len(valid) + 2 * valid.sum())
        for name, value in {**losses, "ranking_accuracy": accuracy * share}.items():
            total[name] = total.get(name, 0) + value.detach()
    if world_size() > 1:
        torch.autograd.backward([fetched[name] for name in names], [targets[name] for name in names])
        for name, leaf in local.items():
            gradients[name] += _gradient(leaf)
    return total


def _encode_with_gradient(
    model: R2D2ForPreTraining,
    inputs: dict[str, Any],
    chunks: list[slice],
    teacher: R2D2TeacherTargets,
    gradients: dict[str, Tensor],
    random_states: list,
    scale: float,
) -> dict[str, Tensor]:
    """Every chunk through the towers again, backwards with the gradients that its outputs were given; FgD, which
    compares no pairs, is computed on the way. Returns its loss."""
    guidance, batch = teacher.feature_guided, len(inputs["input_ids"])
    total: dict[str, Tensor] = {}
    for rows, random_state in zip(chunks, random_states, strict=True):
        _restore_random_state(random_state)
        part = _part(inputs, rows)
        features = model.encode_pairs(**part, feature_guided=guidance is not None)
        outputs = [getattr(features, name) for name in gradients]
        flowing: list[Tensor | None] = [gradient[rows] for gradient in gradients.values()]
        if guidance is not None:
            of_rows = replace(
                guidance,
                image_targets=guidance.image_targets[rows],
                text_targets=guidance.text_targets[rows],
                kept=guidance.kept[rows],
            )
            image_student = model.encode_masked_images(part["pixel_values"], of_rows)
            assert features.text_student is not None  # as asked for
            loss = model.feature_guided_loss(image_student, features.text_student, of_rows)
            losses = {"loss_fgd": loss * (len(image_student) / batch)}
            outputs.append(scale * model.total_loss(losses))
            flowing.append(None)
            total["loss_fgd"] = total.get("loss_fgd", 0) + losses["loss_fgd"].detach()
        torch.autograd.backward(outputs, flowing)
    return total


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None  # a backward pass has reached it
    return leaf.grad


def _random_state(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    device = tensor.device
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return torch.get_rng_state(), on_device


def _restore_random_state(state: tuple[Tensor, Tensor | None]):
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module().set_rng_state(state[1])
