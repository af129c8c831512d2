"""What retrieval and classification save loads in a process without this package, by `trust_remote_code=True`."""

import pytest
import torch
from transformers import pipeline

from modeling_r2d2 import R2D2ForImageClassification, R2D2ForImageTextRetrieval
from tests.helpers import tiny_image, tiny_processor
from tests.test_remote_code import fresh_process, logits
from tests.tiny import tiny_config


@pytest.mark.slow
def test_in_a_fresh_process(tmp_path):
    folder = tmp_path / "saved"
    torch.manual_seed(0)
    retrieval = R2D2ForImageTextRetrieval(tiny_config(max_text_length=16)).eval()
    classifier = R2D2ForImageClassification(tiny_config(id2label={0: "猫", 1: "狗", 2: "船"})).eval()
    for name, model in (("retrieval", retrieval), ("classifier", classifier)):
        model.save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    tiny_image().save(folder / "picture.png")
    result = fresh_process(
        folder,
        """
        plain = AutoModel.from_pretrained(folder / "retrieval", **trust)
        trained = AutoModelForPreTraining.from_pretrained(folder / "retrieval", **trust)
        processor = AutoProcessor.from_pretrained(folder / "retrieval", **trust)
        classify = pipeline("image-classification", model=str(folder / "classifier"), **trust)
        result = {
            "names": [type(plain).__name__, type(trained).__name__],
            "logits": logits(plain, processor),
            "scores": {entry["label"]: entry["score"] for entry in classify(picture)},
        }
        """,
        tmp_path,
    )
    assert result["names"] == ["R2D2Model", "R2D2ForImageTextRetrieval"]
    from modeling_r2d2 import R2D2Model

    expected = logits(R2D2Model.from_pretrained(folder / "retrieval"), tiny_processor())
    assert torch.tensor(result["logits"]).allclose(torch.tensor(expected), atol=1e-5)
    here = {
        entry["label"]: entry["score"]
        for entry in pipeline("image-classification", model=str(folder / "classifier"))(tiny_image())
    }
    assert result["scores"] == pytest.approx(here, abs=1e-5)
