"""The library's common processor tests against R2D2Processor."""

import unittest

from tests.test_processing_common import ProcessorTesterMixin
from transformers import BertTokenizer, CLIPImageProcessor

from modeling_r2d2 import R2D2Processor

WORDS = ["lower", "newer", "upper", "older", "longer", "string", *"一张的图片猫狗"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class R2D2ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """A BERT tokenizer of a few words and the library's CLIP image processor."""

    processor_class = R2D2Processor

    @classmethod
    def setUpClass(cls):
        # As a class of the library: one registered for remote code notes an `auto_map` on what it saves, which
        # `from_pretrained` drops again, and the suite compares the two.
        cls.auto_class, R2D2Processor._auto_class = R2D2Processor._auto_class, None
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        R2D2Processor._auto_class = cls.auto_class

    @classmethod
    def _setup_tokenizer(cls):
        return BertTokenizer(vocab={token: i for i, token in enumerate([*SPECIAL, *WORDS])})

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)


del ProcessorTesterMixin  # a base, not a test
