"""Zero-shot classification: prompt ensembles one text at a time, accuracies against sklearn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from modeling_r2d2.evaluation.zero_shot import (
    ClassificationSet,
    class_embeddings,
    classification_folder,
    classification_metrics,
    classify,
    read_prompts,
)
from modeling_r2d2.evaluation.zero_shot_accuracy import ZeroShotAccuracy
from modeling_r2d2.inference.bootstrap import Bootstrap
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.wukong.tiny import tiny_wukong, tiny_wukong_processor

NAMES = [["猫"], ["狗", "小狗"], ["船"]]
PROMPTS = ["{}", "一张{}的图片"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model(ranker=False)


def test_prompt_ensembles_one_text_at_a_time(model):
    processor = tiny_processor()
    rows = []
    for names in NAMES:
        embeds = []
        for name in names:
            for prompt in PROMPTS:
                inputs = processor(text=prompt.format(name), return_tensors="pt")
                with torch.no_grad():
                    embed = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output[0]
                embeds.append(embed / embed.norm())
        mean = torch.stack(embeds).mean(dim=0)
        rows.append(mean / mean.norm())
    expected = torch.stack(rows)
    torch.testing.assert_close(class_embeddings(model, processor, NAMES, PROMPTS, 2), expected, atol=1e-5, rtol=0)
    images = [tiny_image(seed) for seed in range(4)]
    scores = classify(model, processor, ClassificationSet(images, [0, 1, 2, 0], NAMES), PROMPTS, batch_size=3)
    for pil_image, row in zip(images, scores, strict=True):
        pixels = processor(images=pil_image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            image = model.get_image_features(pixels).pooler_output[0]
        torch.testing.assert_close(row, expected @ (image / image.norm()), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="must contain"):
        class_embeddings(model, processor, NAMES, ["猫"])
    with pytest.raises(ValueError, match="no name"):
        class_embeddings(model, processor, [["猫"], []], PROMPTS)


def test_token_wise_models_ensemble_probabilities():
    """One picture and one prompt at a time, by the model's own zero-shot call; names of one class add up."""
    torch.manual_seed(0)
    model, processor = tiny_wukong("filip").eval(), tiny_wukong_processor()
    images = [tiny_image(seed) for seed in range(3)]
    scores = classify(model, processor, ClassificationSet(images, [0, 1, 2], NAMES), PROMPTS, batch_size=2)
    names = [name for some in NAMES for name in some]
    for image, row in zip(images, scores, strict=True):
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        found = []
        for prompt in PROMPTS:
            texts = processor(text=[prompt.format(name) for name in names], return_tensors="pt", padding=True)
            with torch.no_grad():
                classes = model.encode_classes(texts["input_ids"], texts["attention_mask"])
                found.append(model.class_probabilities(pixels, classes)[0])
        cat, dog, small_dog, ship = torch.stack(found).mean(dim=0)
        torch.testing.assert_close(row, torch.stack([cat, dog + small_dog, ship]), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="compares token by token"):
        class_embeddings(model, processor, NAMES, PROMPTS)


def test_accuracies_against_sklearn():
    generator = np.random.default_rng(0)
    scores, labels = generator.random((60, 8)), generator.integers(0, 8, 60)
    scores[np.arange(60), labels] += 0.4
    metrics, intervals = classification_metrics(torch.from_numpy(scores), labels, Bootstrap(100, seed=1))
    predicted = scores.argmax(axis=1)
    assert metrics["top1"] == pytest.approx(100 * accuracy_score(labels, predicted))
    assert metrics["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=5))
    assert metrics["mean_per_class"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    draws = np.random.default_rng(1).integers(0, 60, (100, 60))
    balanced = [100 * balanced_accuracy_score(labels[d], predicted[d]) for d in draws]
    assert intervals["mean_per_class"] == pytest.approx(np.percentile(balanced, [2.5, 97.5]))
    with pytest.raises(ValueError, match="60 pictures and 59 labels"):
        classification_metrics(torch.from_numpy(scores), labels[:-1])


def test_a_collapsed_model_is_never_right():
    assert classification_metrics(torch.zeros(3, 6), [0, 1, 2])[0] == {"top1": 0, "top5": 0, "mean_per_class": 0}


def test_evaluate_module_alone():
    import evaluate

    from modeling_r2d2.evaluation import zero_shot_accuracy

    scores = [[0.9, 0.1, 0], [0.2, 0.3, 0], [0, 0.1, 0.5]]
    for metric in (ZeroShotAccuracy(), evaluate.load(zero_shot_accuracy.__file__)):
        result = metric.compute(predictions=scores, references=[0, 0, 2])
        assert result == pytest.approx({"top1": 200 / 3, "top5": 100, "mean_per_class": 75})


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        root = tmp_path / "set"
        for name, count in (("n01", 2), ("n02", 1), ("empty", 0)):
            (root / name).mkdir(parents=True)
            for number in range(count):
                tiny_image(number).save(root / name / f"{number}.png")
        return root

    def test_names(self, folder, tmp_path):
        data = classification_folder(folder)
        assert (data.labels, data.names) == ([0, 0, 1], [["n01"], ["n02"]])
        assert [path.parent.name for path in data.images] == ["n01", "n01", "n02"]
        labels = tmp_path / "labels.txt"
        labels.write_text("n02\t狗，小狗\n\nn01\t猫\nn09\t鸟\n", encoding="utf-8")
        assert classification_folder(folder, labels).names == [["猫"], ["狗", "小狗"]]

    def test_files_of_people(self, folder, tmp_path):
        """Names in GBK, junk of systems, a file that is no picture, pictures in folders below."""
        for name in ("n01/._0.png", "__MACOSX/n01/0.png", ".cache/0.png", "n02/note.svg", "n02/more/9.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            tiny_image(3).save(folder / name, "PNG")
        labels = tmp_path / "labels.txt"
        labels.write_bytes("n02\t小狗，狗\r\nn01\t黑色的猫\r\n".encode("gbk"))
        data = classification_folder(folder, labels)
        assert (data.labels, data.names) == ([0, 0, 1, 1], [["黑色的猫"], ["小狗", "狗"]])
        (folder / "n01/0.png").write_text("none")
        with pytest.raises(ValueError, match="1 bad of 4"):
            classification_folder(folder)
        assert classification_folder(folder, max_error_rate=0.5).labels == [0, 1, 1]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("n01\t猫\n", "no line for the folder n02, which holds 1 pictures"),
            ("n01\t猫\nn02 狗\n", r"labels\.txt:2: not a folder, a tab"),
            ("n01\t猫\nn01\t狗\n", r"labels\.txt:2: the folder n01 is named twice"),
        ],
    )
    def test_wrong_labels(self, folder, tmp_path, text, reason):
        labels = tmp_path / "labels.txt"
        labels.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=reason):
            classification_folder(folder, labels)

    def test_one_class_is_none(self, folder):
        with pytest.raises(ValueError, match="0 sub-folders"):
            classification_folder(folder / "n01")

    def test_prompts_from_a_file(self, tmp_path):
        path = tmp_path / "prompts.txt"
        path.write_text("一张{}的照片\n\n{}\n", encoding="utf-8")
        assert read_prompts(path) == ["一张{}的照片", "{}"]
        path.write_text("{}\n一张照片\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"prompts\.txt:2: a prompt has"):
            read_prompts(path)
        path.write_text("\n")
        with pytest.raises(ValueError, match="no prompts"):
            read_prompts(path)
