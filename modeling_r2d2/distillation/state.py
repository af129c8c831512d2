"""Teacher, queue and centre together: what turns a batch into the teacher's targets, and one optimizer step on."""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..model.distillation_losses_r2d2 import (
    ReliabilityPlacement,
    cosine_agreement,
    relative_entropy,
    soft_targets,
    teacher_distribution,
)
from ..model.distributed_r2d2 import gather, gather_with_ids, process_index
from ..model.feature_heads_r2d2 import bottleneck_size
from ..model.masked_images_r2d2 import draw_kept, mask_grid
from ..model.pretraining_r2d2 import (
    R2D2FeatureGuidance,
    R2D2ForPreTraining,
    R2D2TargetGuidance,
    R2D2TeacherTargets,
)
from .center import FeatureCenter
from .queue import FeatureQueue
from .settings import FeatureGuidedSettings, TargetGuidedSettings
from .teacher import MomentumTeacher, TeacherFeatures, more_of_images


class DistillationState(nn.Module):
    """What two-way distillation remembers between steps. Its `state_dict` is all that a checkpoint needs.

    Micro-batches of an optimizer step ask for their targets one by one by `targets`; the step ends with `commit`, or
    with `discard` where the optimizer skipped it.

    Args:
        student: the model that trains.
        target_guided: settings; None leaves that way out.
        feature_guided: settings; None leaves that way out.
        batch: pairs per micro-batch over all workers, at most.
        seed: of the draws of dropped patches.
        autocast: see `MomentumTeacher`.
        teacher: one that was made before (of a student that is sharded by now); None: a copy of the student.
        pairs: of the data, for `TargetGuidedSettings.queue_of`; None: their number is not known.

    Raises:
        ValueError: neither way of distillation; a feature-guided one of a student without feature heads.
    """

    def __init__(
        self,
        student: R2D2ForPreTraining,
        target_guided: TargetGuidedSettings | None,
        feature_guided: FeatureGuidedSettings | None,
        batch: int,
        seed: int = 0,
        autocast: torch.dtype | None = None,
        teacher: MomentumTeacher | None = None,
        pairs: int | None = None,
    ):
        super().__init__()
        if target_guided is None and feature_guided is None:
            raise ValueError("two-way distillation needs at least one of target_guided and feature_guided")
        self.target_guided, self.feature_guided, self.seed = target_guided, feature_guided, seed
        self.teacher = teacher or MomentumTeacher(student, autocast)
        config, device = student.config, student.temperature.device
        if target_guided is not None:
            size = target_guided.queue_of(pairs, batch)
            self.queue = FeatureQueue(size, batch, config.projection_dim, device)
        if feature_guided is not None:
            student.require_feature_heads()
            self._temperatures = feature_guided.temperatures(bottleneck_size(config))
            self.center = FeatureCenter(config.fgd_prototypes, feature_guided.center_momentum, device)
        self._micro_batch = 0
        self._agreement: list[Tensor] = []
        self._entropies: list[Tensor] = []
        self._local: tuple[Tensor, Tensor] | Any = None  # until the first batch

    def targets(
        self, batch: dict[str, Any], step: int, temperature: Tensor, alpha: float, chunk: int | None = None
    ) -> R2D2TeacherTargets:
        """The teacher's targets for one micro-batch, which enters queue and centre.

        Args:
            batch: as `R2D2ForPreTraining.forward` takes it: B local pairs.
            step: optimizer steps made so far.
            temperature: the student's τ.
            alpha: see `soft_targets`.
            chunk: pairs that the teacher encodes at once; None: all.
        """
        features = self.teacher.encode(
            batch["pixel_values"],
            batch["input_ids"],
            batch.get("attention_mask"),
            batch.get("token_type_ids"),
            feature_guided=self.feature_guided is not None,
            chunk=chunk,
            images=more_of_images(self.teacher.model, batch),
        )
        self._local = (features.image_embeds, features.text_embeds)
        targets = R2D2TeacherTargets()
        if self.target_guided is not None:
            placement = self.target_guided.reliability
            targets.target_guided = self._target_guidance(placement, batch.get("image_ids"), temperature, alpha)
        if self.feature_guided is not None:
            targets.feature_guided = self._feature_guidance(self.feature_guided, features, batch["pixel_values"], step)
        self._micro_batch += 1
        return targets

    def _target_guidance(
        self, placement: ReliabilityPlacement, image_ids: Tensor | None, temperature: Tensor, alpha: float
    ) -> R2D2TargetGuidance:
        images, texts = self._local
        both = torch.cat(self._local, dim=1)
        if image_ids is None:
            both = gather(both)
            ids = self.queue.new_ids(len(both))
            image_ids = ids[process_index() * len(images) :][: len(images)]
        else:
            both, ids = gather_with_ids(both, image_ids)
        all_images, all_texts = both.chunk(2, dim=1)
        self.queue.push(all_images, all_texts, ids)
        all_images, all_texts, all_ids, reliability = self.queue.candidates()
        positives = image_ids[:, None] == all_ids
        arguments = (positives, temperature, alpha, reliability, placement)
        return R2D2TargetGuidance(
            image_candidates=all_images,
            text_candidates=all_texts,
            image_targets=soft_targets(images, all_texts, *arguments),
            text_targets=soft_targets(texts, all_images, *arguments),
            log_reliability=reliability.log() if placement == "logits" else None,
        )

    def _feature_guidance(
        self, settings: FeatureGuidedSettings, features: TeacherFeatures, pixel_values: Tensor, step: int
    ) -> R2D2FeatureGuidance:
        images, texts = cast(Tensor, features.image_cosines), cast(Tensor, features.text_cosines)
        height, width = pixel_values.shape[-2:]
        grid = mask_grid(self.teacher.model.config.vision_config, (height, width), settings.block)
        # A generator of its own, keyed by the step: nothing to restore, and the run's other draws stay as they are.
        key = np.random.SeedSequence((self.seed, step, self._micro_batch, process_index()))
        generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0]))
        kept = draw_kept(len(pixel_values), grid[0] * grid[1], settings.image_drop, generator)
        student_temperature, teacher_temperature = self._temperatures
        guidance = R2D2FeatureGuidance(
            image_targets=teacher_distribution(images, self.center.images, teacher_temperature),
            text_targets=teacher_distribution(texts, self.center.texts, teacher_temperature),
            kept=kept.to(pixel_values.device),
            temperature=student_temperature,
            block=settings.block,
        )
        self.center.collect(images, texts)
        self._entropies.append(relative_entropy(torch.cat([guidance.image_targets, guidance.text_targets])))
        return guidance

    def note_student(self, image_embeds: Tensor, text_embeds: Tensor):
        """The student's embeddings (B, D) of the micro-batch that `targets` saw last, for the logged agreement."""
        images, texts = self._local
        agreement = cosine_agreement(image_embeds.detach(), images) + cosine_agreement(text_embeds.detach(), texts)
        self._agreement.append(agreement / 2)

    def commit(self, student: nn.Module, momentum: float):
        """End of an optimizer step: teacher, reliability and centre move on."""
        self.teacher.update(student, momentum)
        if self.target_guided is not None:
            self.queue.age(self.target_guided.reliability_decay)
        if self.feature_guided is not None:
            self.center.commit()
        self._micro_batch = 0

    def discard(self):
        """End of a step that the optimizer skipped: the teacher, the reliability and the centre stay. What the step
        wrote into the queue stays too: the teacher that made it has not changed."""
        if self.feature_guided is not None:
            self.center.discard()
        self._micro_batch = 0

    def measures(self) -> dict[str, float]:
        """What is logged: `teacher_agreement` (mean cosine of student and teacher embeddings since the last call),
        queue fill and reliability, norm of the centre, `teacher_entropy` (mean of FgD's targets since the last call,
        see `relative_entropy`)."""
        measures = {}
        if self._agreement:
            measures["teacher_agreement"] = float(torch.stack(self._agreement).mean())
            self._agreement = []
        if self.target_guided is not None:
            measures |= self.queue.measures()
        if self.feature_guided is not None:
            measures |= self.center.measures()
        if self._entropies:
            measures["teacher_entropy"] = float(torch.stack(self._entropies).mean())
            self._entropies = []
        return measures
