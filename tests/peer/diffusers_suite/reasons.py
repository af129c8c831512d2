"""Every skipped or failing test of diffusers' common pipeline and LoRA tests, with its reason."""

from ledger import Entry

FAILURES = [
    Entry(
        "TestR2D2TextToImageLora::test_simple_inference_with_text_denoiser_lora_and_scale",
        "'BertEncoder' object has no attribute 'layers'",
        "what it says of pictures holds; its last line names a layer of CLIP (tests/text_to_image/test_adapters.py "
        "checks the same of ours)",
    ),
]

SKIPS = [
    Entry(
        ".*::test_(half_precision_inference_no_nan|save_load_float16).*",
        "(requires CUDA|requires a hardware accelerator|test requires)",
        "needs an accelerator",
    ),
    Entry(".*::test_to_device", "(accelerator|test requires)", "needs an accelerator"),
]
