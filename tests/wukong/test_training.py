"""transformers' Trainer, unchanged, trains every similarity; with a locked image tower too."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.wukong.tiny import KINDS, tiny_wukong, tiny_wukong_batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("locked", [False, True])
def test_stock_trainer(kind, locked, tmp_path):
    batch = tiny_wukong_batch(pairs=8)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(8)]
    model = tiny_wukong(kind, spread=1.0, lock_image_tower=locked)
    before = [p.detach().clone() for p in model.vision_model.parameters()]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )

    def collate(samples: list[dict]) -> dict:
        return {**torch.utils.data.default_collate(samples), "return_loss": True}

    Trainer(model, arguments, data_collator=collate, train_dataset=rows).train()
    same = [torch.equal(p, old) for p, old in zip(model.vision_model.parameters(), before, strict=True)]
    assert all(same) if locked else not any(same)
    with torch.no_grad():
        output = model.eval()(**batch)
    assert (output.logits_per_image.argmax(dim=1) == torch.arange(8)).float().mean() >= 0.75
    assert (output.logits_per_text.argmax(dim=1) == torch.arange(8)).float().mean() >= 0.75
