"""A full R2D2 training step against the naive arrangement of the same objectives.

    python benchmarks/r2d2_step.py [--quick]

Both have teacher, TgD, FGR, MLM with enhanced training and FgD, and draw the same patches. Naive: texts padded to 64;
whole, MLM's masked and FgD's masked texts in passes of their own; the masked image in a pass over all patches; MLM in
a pass of its own through the text-image encoder.
"""

import sys
from collections.abc import Callable

import torch
from common import Check, Table, arguments, finish, interleave, median, ratio
from torch import Tensor, nn

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining
from modeling_r2d2.distillation import DistillationState, FeatureGuidedSettings, TargetGuidedSettings
from modeling_r2d2.model.masked_images_r2d2 import gray_blocks
from modeling_r2d2.model.pretraining_r2d2 import R2D2PairFeatures

VOCABULARY, PADDED = 800, 64
#: Tokens of a text with [CLS] and [SEP]: names as the demo's, and captions of 12 to 33 characters.
TEXTS = {"names of the demo": range(3, 13), "captions of 12–33 characters": range(14, 36)}


def small_vit(queue: int = 4096) -> tuple[R2D2Config, TargetGuidedSettings, FeatureGuidedSettings]:
    """A ViT of 64 patches, 192 wide."""
    width = {"hidden_size": 192, "num_attention_heads": 4, "intermediate_size": 768}
    config = R2D2Config(
        vision_config={**width, "num_hidden_layers": 6, "image_size": 64, "patch_size": 8},
        text_config={**width, "num_hidden_layers": 4, "vocab_size": VOCABULARY, "max_position_embeddings": PADDED},
        cross_encoder_config={**width, "num_hidden_layers": 2},
        projection_dim=192,
        fgd_prototypes=16 * 192,
    )
    return config, TargetGuidedSettings(queue_size=queue), FeatureGuidedSettings()


def batch_of(rows: int, lengths: range, padded: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Random pictures and texts; padded to the longest text, or to `padded` tokens."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(lengths.start, lengths.stop, (rows, 1), generator=generator)
    mask = torch.arange(lengths.stop - 1) < length
    input_ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator) * mask
    chosen = (torch.rand(mask.shape, generator=generator) < 0.15) & mask
    chosen[:, 1] = True
    batch = {
        "input_ids": input_ids,
        "attention_mask": mask.long(),
        "masked_input_ids": input_ids.masked_fill(chosen, 4),
        "mlm_labels": input_ids.masked_fill(~chosen, -100),
    }
    if padded:
        missing = (0, padded - mask.shape[1])
        fills = {"mlm_labels": -100}
        batch = {name: nn.functional.pad(value, missing, value=fills.get(name, 0)) for name, value in batch.items()}
    pixels = torch.randn(rows, 3, 64, 64, generator=generator)
    return {**batch, "pixel_values": pixels, "image_ids": torch.arange(rows)}


class NaiveR2D2(R2D2ForPreTraining):
    """The same objectives, every one with the passes that it would have alone."""

    def encode_pairs(self, input_ids, pixel_values, attention_mask=None, masked_input_ids=None, **kwargs):
        whole = super().encode_pairs(input_ids, pixel_values, attention_mask)
        for_mlm = self.get_text_features(masked_input_ids, attention_mask)
        for_distillation = self.get_text_features(masked_input_ids, attention_mask)
        student = self.feature_heads.text(for_distillation.last_hidden_state[:, 0])
        return R2D2PairFeatures(
            whole.image_states,
            whole.image_embeds,
            whole.text_states,
            whole.text_embeds,
            for_mlm.last_hidden_state,
            student,
        )

    def encode_masked_images(self, pixel_values, guidance, **kwargs):
        outputs = self.get_image_features(gray_blocks(pixel_values, guidance.kept, (8, 8)))
        return self.feature_heads.image(outputs.last_hidden_state[:, 0])


def step_of(model: R2D2ForPreTraining, settings: tuple, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Teacher, forward, backward, clipping, AdamW, and the teacher's update."""
    state = DistillationState(model, *settings, batch=len(batch["input_ids"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        teacher = state.targets(batch, 0, model.current_temperature(), 0.4)
        model(**batch, teacher=teacher).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state.commit(model, 0.995)

    return step


def measure(rows: int, rounds: int, quick: bool = False) -> Table:
    """Both, on both kinds of text."""
    table_rows, checks = [], []
    for texts, lengths in TEXTS.items():
        config, *settings = small_vit()
        contenders = {}
        for name, kind, padded in (("this project", R2D2ForPreTraining, None), ("naive", NaiveR2D2, PADDED)):
            torch.manual_seed(0)
            config.rank_masked_texts = kind is R2D2ForPreTraining  # else MLM has a pass of its own
            model = kind(type(config).from_dict(config.to_dict())).train()
            contenders[name] = step_of(model, settings, batch_of(rows, lengths, padded))
        seconds = interleave(contenders, rounds)
        share = ratio(seconds["this project"], seconds["naive"])
        for name, values in seconds.items():
            row = {"texts": texts, "arrangement": name, "ms": 1e3 * median(values)}
            table_rows.append(row | {"ratio": share if name == "this project" else 1.0})
        checks.append(Check(f"full R2D2 step against the naive arrangement, {texts}", share, 0.70, "<"))
    return Table(
        "r2d2_step",
        "A full R2D2 step, small ViT",
        "All objectives with teacher, one step of AdamW; medians over the rounds. " + __doc__.split("\n\n")[-1].strip(),
        {"texts": "", "arrangement": "", "ms": ".0f", "ratio": ".2f"},
        table_rows,
        {"pairs": rows, "patches": 64, "rounds": rounds},
        checks,
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    options = arguments(__doc__, rounds=7).parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    table = measure(8, 2, quick=True) if options.quick else measure(128, options.rounds)
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
