"""What the API reference holds: everything that the package exports, and what the guides name beyond that."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A heading of a page: names of a module, separated by spaces; none: all that its `__all__` lists."""

    title: str
    module: str
    names: str = ""


@dataclass(frozen=True)
class Page:
    """A file of docs/api. text: what stands below its title."""

    file: str
    title: str
    text: str
    parts: tuple[Part, ...]


PAGES = (
    Page(
        "models.md",
        "Models, configurations, processors",
        "Shapes: B pictures or texts, L tokens or patches, D the width. Guide: [load](../load.md).",
        (
            Part(
                "R2D2 and PRD2",
                "modeling_r2d2",
                "R2D2Model R2D2TextModel R2D2ForImageTextMatching R2D2ForImageTextRetrieval R2D2ForImageClassification "
                "R2D2ForConditionalGeneration R2D2PreTrainedModel R2D2Output R2D2MatchOutput",
            ),
            Part(
                "Configurations", "modeling_r2d2", "R2D2Config R2D2VisionConfig R2D2TextConfig R2D2CrossEncoderConfig"
            ),
            Part("Processor", "modeling_r2d2", "R2D2Processor"),
            Part(
                "Wukong",
                "modeling_r2d2",
                "WukongModel WukongPreTrainedModel WukongOutput WukongConfig WukongTextConfig WukongProcessor",
            ),
            Part("Prompts of Wukong", "modeling_r2d2.model.modeling_wukong", "class_prompts"),
        ),
    ),
    Page(
        "conversion.md",
        "Weights from elsewhere",
        "Guide: [load](../load.md).",
        (
            Part("Official checkpoints and warm starts", "modeling_r2d2.integrations"),
            Part("Wukong", "modeling_r2d2", "convert_wukong_checkpoint"),
        ),
    ),
    Page(
        "data.md",
        "Data",
        "Guide: [data](../data.md).",
        (
            Part(
                "Pairs",
                "modeling_r2d2.processing",
                "load_pairs PairDataset StreamingPairs EmojiPairs stable_id stable_ids",
            ),
            Part(
                "Pictures and bad records",
                "modeling_r2d2.processing",
                "open_image ImageReadError DataRefusedError ErrorReport Problem",
            ),
            Part("Checking a data set", "modeling_r2d2.processing.datasets.check", "check_pairs DataCheck Spread"),
            Part(
                "Builders of `datasets`",
                "modeling_r2d2.processing.datasets.builders",
                "PairBuilder ICM IQM ICR IQR Flickr30kCNA ChineseCLIPFormat AICICC COCOCN Zero Wukong",
            ),
            Part(
                "From pairs to batches",
                "modeling_r2d2.processing",
                "PretrainingDataset StreamingPretrainingDataset R2D2PretrainingCollator R2D2Augmentation "
                "BatchAugmentation TextMasking mask_tokens build_character_tokenizer",
            ),
        ),
    ),
    Page(
        "pretraining.md",
        "Pre-training and distillation",
        "Guides: [pre-train](../pretrain.md), [distillation](../distillation.md), [systems](../systems.md).",
        (
            Part(
                "Model",
                "modeling_r2d2",
                "R2D2ForPreTraining R2D2ForPreTrainingOutput R2D2TeacherTargets R2D2TargetGuidance R2D2FeatureGuidance",
            ),
            Part("Trainer", "modeling_r2d2.training"),
            Part(
                "A run as one call",
                "modeling_r2d2.training.pretraining",
                "pretrain build_trainer PretrainingSettings",
            ),
            Part("Where a run starts", "modeling_r2d2.training.start", "StartingPoint starting_point"),
            Part("Recipes", "modeling_r2d2.training.recipes", "Recipe find_recipe recipe_for"),
            Part("Two-way distillation and the dual queue", "modeling_r2d2.distillation"),
        ),
    ),
    Page(
        "losses.md",
        "Losses",
        "Functions of tensors alone, softmaxes in float32. Each has a second implementation in the tests.",
        (
            Part(
                "Pre-ranking, ranking, masked language modelling",
                "modeling_r2d2.model.losses_r2d2",
                "scaled_similarity same_identity contrastive_targets soft_cross_entropy pre_ranking_loss "
                "hard_negative_weights draw_hard_negatives hardest_negatives HardNegatives ranking_loss match_weights "
                "masked_language_modeling_loss",
            ),
            Part(
                "Two-way distillation",
                "modeling_r2d2.model.distillation_losses_r2d2",
                "soft_targets target_guided_loss teacher_distribution feature_guided_loss cosine_agreement",
            ),
            Part("Dual queue (BriVL)", "modeling_r2d2.distillation.dual_queue_losses", "dual_queue_loss"),
            Part(
                "Token-wise similarity (FILIP, Wukong)",
                "modeling_r2d2.model.token_similarity_r2d2",
                "TokenWiseSimilarity token_wise_similarity gathered_token_wise_similarity token_wise_contrastive_loss",
            ),
        ),
    ),
    Page(
        "finetuning.md",
        "Fine-tuning",
        "Guide: [fine-tuning](../finetune.md).",
        (
            Part("Runs and adapters", "modeling_r2d2.finetuning"),
            Part("What a run reports", "modeling_r2d2.finetuning.report", "FinetuningReport DataSummary"),
        ),
    ),
    Page(
        "evaluation.md",
        "Evaluation",
        "Guide: [evaluation](../evaluate.md).",
        (
            Part("Retrieval", "modeling_r2d2.evaluation"),
            Part("Any task", "modeling_r2d2.evaluation.runner", "evaluate_models EvaluationSettings"),
            Part("Results", "modeling_r2d2.evaluation.results", "EvaluationResult markdown_report write_report"),
            Part("Matching", "modeling_r2d2.inference.matching", "matching_metrics roc_auc best_threshold"),
            Part(
                "Captioning",
                "modeling_r2d2.evaluation.captioning",
                "captioning_metrics caption_tokens bleu4 rouge_l cider",
            ),
            Part("Intervals", "modeling_r2d2.inference.bootstrap", "Bootstrap"),
            Part("Figures", "modeling_r2d2.figures"),
        ),
    ),
    Page(
        "search.md",
        "Search",
        "Guide: [search](../search.md).",
        (
            Part("Two-stage search", "modeling_r2d2.search"),
            Part("Building an index", "modeling_r2d2.search.building", "IndexBuilder Built"),
            Part("Nearest neighbours", "modeling_r2d2.search.vectors", "FaissVectors"),
            Part("Calibration in figures", "modeling_r2d2.inference.calibration", "Reliability Threshold"),
            Part("Milvus", "modeling_r2d2.search.milvus", "MilvusVectors"),
        ),
    ),
    Page(
        "pipelines.md",
        "Pipelines and text-to-image",
        "Guides: [load](../load.md), [text-to-image](../text_to_image.md).",
        (
            Part("Pipelines of transformers", "modeling_r2d2.pipelines"),
            Part("Pipeline of diffusers", "modeling_r2d2", "R2D2TextToImagePipeline"),
            Part("Training and evaluating it", "modeling_r2d2.text_to_image"),
        ),
    ),
    Page(
        "deployment.md",
        "ONNX, sentence-transformers, demo page, cards",
        "Guides: [ONNX](../deploy.md), [sentence-transformers](../sentence_transformers.md), [demo page](../app.md), "
        "[publish](../publish.md).",
        (
            Part("ONNX", "modeling_r2d2.export"),
            Part(
                "sentence-transformers",
                "modeling_r2d2.integrations.sentence_transformers",
                "sentence_transformer cross_encoder R2D2Encoder R2D2Ranker",
            ),
            Part("Demo page", "modeling_r2d2.app"),
            Part("Cards and the Hub", "modeling_r2d2.hub_cards"),
            Part("What would be uploaded", "modeling_r2d2.hub_cards.push", "PushPlan"),
        ),
    ),
)
