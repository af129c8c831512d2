"""BriVL in training: what R2D2's classes of training do, on BriVL's towers. This file travels to the Hub beside the
weights, so it imports only flat siblings."""

from .image_text_retrieval_r2d2 import R2D2ForImageTextRetrieval
from .modeling_brivl import BriVLModel
from .modeling_r2d2 import R2D2ForImageTextMatching
from .pretraining_r2d2 import R2D2ForPreTraining


class BriVLForPreTraining(BriVLModel, R2D2ForPreTraining):
    """`R2D2ForPreTraining` with BriVL's towers; what trains is said by `BriVLConfig.freeze_lower_layers`. BriVL's own
    loss is that of `DualQueueContrastiveCallback`."""

    _auto_class = "AutoModelForPreTraining"


class BriVLForImageTextRetrieval(BriVLModel, R2D2ForImageTextRetrieval):
    """`R2D2ForImageTextRetrieval` with BriVL's towers."""

    _auto_class = "AutoModelForPreTraining"


class BriVLForImageTextMatching(BriVLModel, R2D2ForImageTextMatching):
    """`R2D2ForImageTextMatching` with BriVL's towers and a ranker on them."""

    _auto_class = "AutoModelForImageTextMatching"


__all__ = ["BriVLForImageTextMatching", "BriVLForImageTextRetrieval", "BriVLForPreTraining"]
