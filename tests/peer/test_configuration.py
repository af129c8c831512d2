"""The library's common configuration tests against every R2D2 configuration."""

import unittest

from testers import EFFICIENTNET_CONFIG, SIZES, TEXT_CONFIG, VIT_CONFIG, BriVLLossTester, R2D2ModelTester
from tests.test_configuration_common import ConfigTester

from modeling_r2d2 import (
    BriVLConfig,
    BriVLTextConfig,
    BriVLVisionConfig,
    R2D2Config,
    R2D2CrossEncoderConfig,
    R2D2TextConfig,
    R2D2VisionConfig,
)


class ConfigurationTest(unittest.TestCase):
    """One test a configuration."""

    def setUp(self):
        self.model_tester = R2D2ModelTester(self)  # read by the composite part of ConfigTester

    def test_r2d2(self):
        ConfigTester(self, config_class=R2D2Config, has_text_modality=False, projection_dim=37).run_common_tests()

    def test_prd2(self):
        tester = ConfigTester(self, config_class=R2D2Config, has_text_modality=False, cross_encoder_config=None)
        tester.run_common_tests()

    def test_brivl(self):
        self.model_tester = BriVLLossTester(self)
        ConfigTester(self, config_class=BriVLConfig, has_text_modality=False, projection_dim=37).run_common_tests()

    def test_brivl_text(self):
        own = {**TEXT_CONFIG, "padded_length": 12}
        ConfigTester(self, config_class=BriVLTextConfig, **own).run_common_tests()

    def test_brivl_vision(self):
        own = {name: value for name, value in EFFICIENTNET_CONFIG.items() if name != "transformer_config"}
        ConfigTester(self, config_class=BriVLVisionConfig, has_text_modality=False, **own).run_common_tests()

    def test_text(self):
        ConfigTester(self, config_class=R2D2TextConfig, **TEXT_CONFIG).run_common_tests()

    def test_vision(self):
        tester = ConfigTester(self, config_class=R2D2VisionConfig, has_text_modality=False, **VIT_CONFIG)
        tester.run_common_tests()

    def test_cross_encoder(self):
        tester = ConfigTester(self, config_class=R2D2CrossEncoderConfig, has_text_modality=False, **SIZES)
        tester.run_common_tests()
