"""The library's common model tests against every R2D2 model class."""

import unittest

import torch
from testers import (
    RESNET_CONFIG,
    SWIN_CONFIG,
    BriVLLossTester,
    R2D2ImageTextMatchingTester,
    R2D2LossTester,
    R2D2PreTrainingTester,
    R2D2TextModelTester,
)
from tests.test_modeling_common import ModelTesterMixin
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from modeling_r2d2 import BriVLModel, R2D2ForImageTextMatching, R2D2ForPreTraining, R2D2Model, R2D2TextModel


class MatchingAsClassification(R2D2ForImageTextMatching):
    """The match logits of both encoders under the name that the suite compares."""

    def forward(self, input_ids=None, pixel_values=None, **kwargs: Unpack[TransformersKwargs]):
        output = super().forward(input_ids, pixel_values, **kwargs)
        output["logits"] = torch.cat([output.text_match_logits, output.image_match_logits], dim=-1)
        return output


class CompositeTest(ModelTesterMixin):
    """What all composite models share."""

    all_model_classes = (R2D2Model,)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # ours is not exempt
    test_resize_embeddings = True
    # a forward pass of pre-ranking reads neither the ranker nor the head of masked language modelling
    test_all_params_have_gradient = False


class R2D2ModelTest(CompositeTest, unittest.TestCase):
    """R2D2: towers and ranker."""

    def setUp(self):
        self.model_tester = R2D2LossTester(self)


class PRD2ModelTest(CompositeTest, unittest.TestCase):
    """PRD2: towers only; here every parameter has a gradient."""

    test_all_params_have_gradient = True

    def setUp(self):
        self.model_tester = R2D2LossTester(self, ranker=False)


def check_image_tokens(test: ModelTesterMixin, width: int):
    """`last_hidden_state` of the images is (I, N, D), D being the width of the tower's last stage."""
    config, inputs = test.model_tester.prepare_config_and_inputs_for_common()
    with torch.no_grad():
        states = R2D2Model(config).eval().get_image_features(inputs["pixel_values"]).last_hidden_state
    assert (states.ndim, len(states), states.shape[-1]) == (3, len(inputs["pixel_values"]), width)


class R2D2ResNetModelTest(CompositeTest, unittest.TestCase):
    """An image tower without attention."""

    def setUp(self):
        self.model_tester = R2D2LossTester(self, vision_config=RESNET_CONFIG)

    def test_feature_maps_become_tokens(self):
        check_image_tokens(self, width=RESNET_CONFIG["hidden_sizes"][-1])

    def test_attention_switch_is_ignored(self):
        model = R2D2Model(self.model_tester.get_config())
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            assert model.text_model.config._attn_implementation == implementation
            assert model.vision_model.config._attn_implementation == "eager"


class R2D2SwinModelTest(CompositeTest, unittest.TestCase):
    """An image tower with windows and stages."""

    def setUp(self):
        self.model_tester = R2D2LossTester(self, vision_config=SWIN_CONFIG)

    def test_feature_maps_become_tokens(self):
        check_image_tokens(self, width=SWIN_CONFIG["embed_dim"] * 2 ** (len(SWIN_CONFIG["depths"]) - 1))


class BriVLModelTest(CompositeTest, unittest.TestCase):
    """BriVL: regions of a map, a BERT that reads padding, a transformer over each."""

    all_model_classes = (BriVLModel,)
    test_all_params_have_gradient = True

    def setUp(self):
        self.model_tester = BriVLLossTester(self)


class R2D2ForImageTextMatchingTest(CompositeTest, unittest.TestCase):
    """Fine-tuning on labelled pairs."""

    @property
    def all_model_classes(self):
        # the comparison of sdpa with eager reads `logits` of classes that are named so
        compares = "eager_matches_sdpa" in self._testMethodName
        return (MatchingAsClassification if compares else R2D2ForImageTextMatching,)

    def setUp(self):
        self.model_tester = R2D2ImageTextMatchingTester(self)


class R2D2ForPreTrainingTest(CompositeTest, unittest.TestCase):
    """All objectives of pre-training: every parameter has a gradient."""

    all_model_classes = (R2D2ForPreTraining,)
    test_all_params_have_gradient = True

    def setUp(self):
        self.model_tester = R2D2PreTrainingTester(self)


class R2D2TextModelTest(ModelTesterMixin, unittest.TestCase):
    """The text tower alone."""

    all_model_classes = (R2D2TextModel,)
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = R2D2TextModelTester(self)


del CompositeTest, ModelTesterMixin  # bases, not tests
