"""Training and evaluation of `R2D2TextToImagePipeline` (extras `[diffusers]` and `[train]`)."""

from ..processing.files.lazy import lazy_names

_NAMES = {
    "components": ["adapt_pretrained", "merge_lora", "plain_text_encoder"],
    "data": ["CaptionFeatures", "CaptionedImages"],
    "demo": ["DemoSettings", "demo_pipeline", "run_demo"],
    "evaluation": ["GeneratedResult", "evaluate_generated", "feature_kid", "generate"],
    "objective": ["diffusion_loss", "min_snr_weights"],
    "sheet": ["sample_sheet"],
    "settings": ["TextToImageSettings"],
    "training": ["train_text_to_image"],
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _NAMES)
