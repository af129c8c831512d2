"""The library's common processor tests against R2D2Processor and BriVLProcessor."""

import unittest

from tests.test_processing_common import ProcessorTesterMixin
from transformers import BertTokenizer, CLIPImageProcessor

from modeling_r2d2 import BriVLImageProcessor, BriVLProcessor, R2D2Processor

WORDS = ["lower", "newer", "upper", "older", "longer", "string", *"一张的图片猫狗"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class R2D2ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    """A BERT tokenizer of a few words and the library's CLIP image processor."""

    processor_class = R2D2Processor
    own_classes: tuple = (R2D2Processor,)

    @classmethod
    def setUpClass(cls):
        # As classes of the library: one registered for remote code notes an `auto_map` on what it saves, which
        # `from_pretrained` drops again, and the suite compares the two.
        cls.auto_classes = [each._auto_class for each in cls.own_classes]
        for each in cls.own_classes:
            each._auto_class = None
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        for each, name in zip(cls.own_classes, cls.auto_classes, strict=True):
            each._auto_class = name

    @classmethod
    def _setup_tokenizer(cls):
        return BertTokenizer(vocab={token: i for i, token in enumerate([*SPECIAL, *WORDS])})

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)


class BriVLProcessorTest(R2D2ProcessorTest):
    """With an image processor of its own."""

    processor_class = BriVLProcessor
    own_classes = (R2D2Processor, BriVLProcessor, BriVLImageProcessor)

    @classmethod
    def _setup_image_processor(cls):
        return BriVLImageProcessor(size={"height": 32, "width": 32})


del ProcessorTesterMixin  # a base, not a test
