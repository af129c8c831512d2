"""Every skipped or failing test of `make peer`, with its reason. Nothing else may be skipped or fail."""

from ledger import Entry

#: Tests that fail by design. One that passes is an error: then its entry goes.
FAILURES = [
    Entry(
        "(?!R2D2TextModel).*::test_attention_outputs",
        "Output' object has no attribute 'attentions'",
        "reads outputs.attentions, which a composite output has per tower; the library's own CLIP skips it, and "
        "test_get_text_features_attentions and test_get_image_features_attentions cover it",
    ),
    Entry(
        "(?!R2D2TextModel).*::test_hidden_states_output",
        "Output' object has no attribute 'hidden_states'",
        "reads outputs.hidden_states, as above; test_get_text_features_hidden_states and "
        "test_get_image_features_hidden_states cover it",
    ),
    Entry(
        "(?!R2D2TextModel).*::test_retain_grad_hidden_states_attentions",
        "Output' object has no attribute 'hidden_states'",
        "reads outputs.hidden_states, as above",
    ),
    Entry(
        "R2D2ResNetModelTest::test_get_image_features_attentions",
        "attentions should not be None",
        "a ResNet has no attention",
    ),
    Entry(
        "R2D2ResNetModelTest::test_get_image_features_output_[02].*",
        "Cannot find the hidden size attribute in vision_config",
        "the test knows no hidden_sizes, a ResNet's widths; test_feature_maps_become_tokens checks the shape",
    ),
    Entry(
        "R2D2SwinModelTest::test_get_image_features_output_[02].*",
        "32 != 16 : hidden_size mismatch",
        "the test takes Swin's embed_dim, the width of its first stage, for the last; as above",
    ),
]

ONE_DEVICE = "needs an accelerator"
GENERATION = "a test of generating language models"

#: Tests that the suite itself skips.
SKIPS = [
    # what this machine does not have
    Entry(".*::test_.*", r"test requires (multiple )?accelerators?", ONE_DEVICE),
    Entry(".*::test_flash_attn.*", r"test requires (Flash Attention|MPS|the kernels library)", ONE_DEVICE),
    Entry(".*::test_kernels_can_load_without_crashing", "test requires the kernels library", ONE_DEVICE),
    Entry(".*::test_.*_with_deepspeed.*", "test requires deepspeed", "DeepSpeed is not installed"),
    Entry(".*::test_torch_compile_for_training", "test is slow", ONE_DEVICE),
    # what these models are not
    Entry(".*::test_encoder_decoder_loss_no_double_shift", "No sequence-to-sequence", GENERATION),
    Entry(".*::test_causal_lm_loss_honors_shift_labels", "No decoder-only", GENERATION),
    Entry(".*::test_moe_.*", "no sparse experts", "no experts"),
    Entry(".*::test_output_router_logits_from_config", "no `output_router_logits`", "no experts"),
    Entry(".*::test_eager_matches_batched_and_grouped_.*", "does not support grouped_mm", "no experts"),
    Entry(".*::test_sliding_window_mask", "does not support sliding window", "no sliding window"),
    Entry(".*::test_model_rope_.*", "no `base_model_class`", "no rotary position embeddings"),
    Entry(".*::test_vision_axial_rope", "no `base_model_class`", "no rotary position embeddings"),
    Entry(".*::test_.*tp_plan.*", "does not have a TP plan", "no tensor parallel plan"),
    Entry(
        ".*::test_resize_position_vector_embeddings",
        "does not have position embeddings",
        "the text tower's position table is fixed; the image tower interpolates its own",
    ),
    Entry(
        ".*::test_inputs_embeds.*",
        "doesn't use `inputs_embeds`",
        "composite models take token ids, as the library's CLIP",
    ),
    Entry(
        ".*::test_reverse_loading_mapping",
        "Only PrefixChange conversions found",
        "the library's own conversion for CLIP towers is a change of prefix, which the test leaves out",
    ),
    # one of two tests, for composite models or for the others
    Entry(".*::test_sdpa_can_dispatch_non_composite_models", "does not support SDPA", "composite"),
    Entry("R2D2TextModelTest::test_sdpa_can_dispatch_composite_models", "does not support SDPA", "one tower"),
    Entry("R2D2TextModelTest::test_attn_implementation_composite_models", "not a composite model", "one tower"),
    Entry("R2D2TextModelTest::test_can_set_attention_dynamically_composite_model", "not composite", "one tower"),
    Entry("R2D2TextModelTest::test_internal_model_config_.*", "No subconfigs", "one tower"),
    # by class
    Entry(
        "R2D2TextModelTest::test_.*",
        "not configured to run training tests",
        "the text tower has no loss of its own",
    ),
    Entry("R2D2TextModelTest::test_keep_in_fp32_modules.*", "no _keep_in_fp32_modules", "it has no temperature"),
    Entry(
        "R2D2TextModelTest::test_torch_save_load",
        "not in MODEL_MAPPING",
        "its model type is bert, so that what it saves loads as a plain BertModel",
    ),
    Entry(
        ".*::test_.*_mapp.*",
        "No conversion found",
        "no weight of these classes is renamed on loading",
    ),
    Entry(
        "R2D2ResNetModelTest::test_can_set_attention_dynamically",
        "Parts of this model don't support sdpa",
        "a ResNet has no attention; test_attention_switch_is_ignored checks the rest",
    ),
    Entry(
        "R2D2ForPreTrainingTest::test_can_capture_specific_layers_hidden_states",
        "does not propagate hidden states correctly or uses another name",
        "with its losses it returns no states: a training step need not keep them",
    ),
    Entry(
        "R2D2ForImageTextMatchingTest::test_can_capture_specific_layers_hidden_states",
        "does not propagate hidden states correctly or uses another name",
        "its states are those of the cross encoders: text_cross_output, image_cross_output",
    ),
    # the processor: images and texts, no chat
    Entry("(R2D2|BriVL)ProcessorTest::test_.*chat_template.*", "(has no|accept) chat template", "no chat"),
    Entry("(R2D2|BriVL)ProcessorTest::test_.*", "test requires (librosa|Torchcodec)", "no audio, no video"),
    Entry(
        "(R2D2|BriVL)ProcessorTest::test_.*", "(video_processor|feature_extractor) attribute not", "no audio, no video"
    ),
    Entry("(R2D2|BriVL)ProcessorTest::test_.*", "_get_num_multimodal_tokens", "a text holds no image tokens"),
    Entry("(R2D2|BriVL)ProcessorTest::test_processor_text_has_no_visual", "images with text", "as above"),
    Entry("(R2D2|BriVL)ProcessorTest::test_if_input_has_mismatching_.*", "text inputs", "as above"),
]
