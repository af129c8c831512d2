"""Every skipped or failing test of diffusers' common pipeline tests, with its reason."""

from ledger import Entry

FAILURES: list[Entry] = []

SKIPS = [
    Entry(
        ".*::test_(half_precision_inference_no_nan|save_load_float16).*",
        "(requires CUDA|requires a hardware accelerator|test requires)",
        "needs an accelerator",
    ),
    Entry(".*::test_to_device", "(accelerator|test requires)", "needs an accelerator"),
]
