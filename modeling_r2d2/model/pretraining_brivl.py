"""BriVL in training: all that `R2D2ForPreTraining` does, on BriVL's towers. This file travels to the Hub beside the
weights, so it imports only flat siblings."""

from .modeling_brivl import BriVLModel
from .pretraining_r2d2 import R2D2ForPreTraining


class BriVLForPreTraining(BriVLModel, R2D2ForPreTraining):
    """`R2D2ForPreTraining` with BriVL's towers; what trains is said by `BriVLConfig.freeze_lower_layers`. BriVL's own
    loss is that of `DualQueueContrastiveCallback`."""

    _auto_class = "AutoModelForPreTraining"


__all__ = ["BriVLForPreTraining"]
