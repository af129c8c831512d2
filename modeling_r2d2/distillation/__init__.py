"""Two-way distillation: a momentum teacher, its feature queue and centre, and the callbacks that train with them."""

from .callbacks import FeatureGuidedDistillationCallback, TargetGuidedDistillationCallback, TwoWayDistillationCallback
from .center import FeatureCenter
from .dual_queue import DualQueueContrastiveCallback, DualQueueSettings, DualQueueState
from .queue import FeatureQueue
from .schedules import RisingMomentum, Schedule
from .settings import FeatureGuidedSettings, TargetGuidedSettings
from .state import DistillationState
from .teacher import MomentumTeacher

__all__ = [
    "DistillationState",
    "DualQueueContrastiveCallback",
    "DualQueueSettings",
    "DualQueueState",
    "FeatureCenter",
    "FeatureGuidedDistillationCallback",
    "FeatureGuidedSettings",
    "FeatureQueue",
    "MomentumTeacher",
    "RisingMomentum",
    "Schedule",
    "TargetGuidedDistillationCallback",
    "TargetGuidedSettings",
    "TwoWayDistillationCallback",
]
