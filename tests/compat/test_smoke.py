"""What every supported version of torch and transformers must do: train, save, load, switch attention."""

import pytest
import torch
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining, R2D2Model, R2D2Processor
from tests.compat.make_checkpoint import DATA, TEXTS, images

CHECKPOINT = DATA / "checkpoint_v0_1"


@pytest.fixture
def batch():
    return R2D2Processor.from_pretrained(CHECKPOINT)(images=images(), text=TEXTS, return_tensors="pt")


def test_auto_classes_load_it():
    assert isinstance(AutoModel.from_pretrained(CHECKPOINT), R2D2Model)
    assert isinstance(AutoProcessor.from_pretrained(CHECKPOINT), R2D2Processor)


def test_attention_implementations_agree(batch):
    outputs = []
    for implementation in ("eager", "sdpa"):
        model = R2D2Model.from_pretrained(CHECKPOINT, attn_implementation=implementation).eval()
        with torch.no_grad():
            scores = model(**batch).logits_per_image
            matches = model.match(batch["input_ids"], batch["pixel_values"], batch["attention_mask"])
        outputs.append((scores, matches.match_probability))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_activation_checkpointing(batch):
    model = R2D2ForPreTraining.from_pretrained(CHECKPOINT).train()
    model.gradient_checkpointing_enable()  # the name that all supported versions have
    model(**batch).loss.backward()
    assert model.text_model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_convolutional_tower_trains(batch):
    """Small convolutions, backwards too: what a demo tower is made of."""
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config = R2D2Config.from_pretrained(CHECKPOINT).to_dict() | {
        "vision_config": {**resnet, "layer_type": "basic"},
        "vision_pooling": None,
    }
    model = R2D2ForPreTraining(R2D2Config(**config)).train()
    model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.vision_model.parameters())


class ImageEncoder(torch.nn.Module):
    """pixel_values -> embeddings, as an exported program wants it."""

    def __init__(self, model: R2D2Model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model.get_image_features(pixel_values).pooler_output


def test_torch_export(batch):
    encoder = ImageEncoder(R2D2Model.from_pretrained(CHECKPOINT).eval())
    exported = torch.export.export(encoder, (batch["pixel_values"],)).module()
    with torch.no_grad():
        expected = encoder(batch["pixel_values"])
    torch.testing.assert_close(exported(batch["pixel_values"]), expected, atol=1e-4, rtol=1e-4)


def test_torch_compile(batch):
    encoder = ImageEncoder(R2D2Model.from_pretrained(CHECKPOINT).eval())
    with torch.no_grad():
        compiled = torch.compile(encoder, backend="eager")(batch["pixel_values"])
        expected = encoder(batch["pixel_values"])
    torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)


def test_stock_trainer_trains_and_saves(batch, tmp_path):
    rows = [{name: batch[name][i] for name in ("input_ids", "attention_mask", "pixel_values")} for i in range(4)]
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(R2D2ForPreTraining.from_pretrained(CHECKPOINT), arguments, train_dataset=rows)
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
    trainer.save_model(tmp_path / "model")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "model"), R2D2Model)


def test_zero_shot_pipeline(batch):
    classify = pipeline("zero-shot-image-classification", model=str(CHECKPOINT), device="cpu")
    results = classify(images()[0], candidate_labels=TEXTS, hypothesis_template="{}")
    assert {result["label"] for result in results} == set(TEXTS)
    assert sum(result["score"] for result in results) == pytest.approx(1, abs=1e-4)
