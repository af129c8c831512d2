"""The recipe `ranker`: towers stand still, negatives come from the whole set, the batch brings them along."""

import copy
import shutil

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.processing.datasets.pair_sets import as_pairs
from modeling_r2d2.processing.datasets.streaming import StreamingPairs
from modeling_r2d2.processing.masking import TextMasking
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from modeling_r2d2.training.frozen_towers import frozen_towers_data
from modeling_r2d2.training.kept_states import Images
from modeling_r2d2.training.negatives import PairListing, WholeSetNegatives
from modeling_r2d2.training.pretraining import build_trainer, pretrain
from modeling_r2d2.training.recipes import RankerRecipe, find_recipe
from tests.processes import in_two_processes
from tests.tiny import tiny_config
from tests.training.test_trainer import Colors, assert_equal, model, processor, settings, weights  # noqa: F401

#: A caption that pictures of two colours share.
WARM = "红黄的图片"


class Shared(Colors):
    """Colours with two captions each, of which one colour shares one with another."""

    def __getitem__(self, index: int) -> dict:
        pair = super().__getitem__(index)
        shared = WARM if pair["image_id"] in "红黄" else f"{pair['image_id']}的图片"
        return {**pair, "text": [pair["text"], shared]}


def ranker_settings(folder, **changes):
    return settings(folder, **{"recipe": "ranker", "augmentation": None, **changes})


def listing_of(pairs) -> PairListing:
    return PairListing.of(as_pairs(pairs))


# -- the draw -----------------------------------------------------------------------------------------


def test_listing():
    listing = listing_of(Shared())
    assert (len(listing.rows), len(listing.texts), len(set(listing.ids.tolist()))) == (24, 15, 8)
    for row in range(24):
        assert [listing.texts[each] for each in listing.texts_of[row]] == Shared()[row]["text"]
    negatives = WholeSetNegatives(listing, torch.eye(24), torch.eye(15, 24), 1.0)
    pairs = [Shared()[row] for row in range(24)]
    for number, text in enumerate(listing.texts):
        ids = {pair["image_id"] for pair in pairs if text in pair["text"]}
        assert set(negatives.images_of(number)) == {row for row in range(24) if pairs[row]["image_id"] in ids}
    for row in range(24):
        own = {text for pair in pairs if pair["image_id"] == pairs[row]["image_id"] for text in pair["text"]}
        assert {listing.texts[each] for each in negatives.texts_of(row)} == own


@pytest.mark.parametrize("sharpness", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("entries", [1 << 24, 50])
def test_negatives_are_drawn_by_the_softmax_over_the_whole_set(sharpness, entries, monkeypatch):
    """Frequencies of many draws against the softmax written out in numpy, also in chunks."""
    monkeypatch.setattr("modeling_r2d2.training.negatives._ENTRIES", entries)
    listing, rng = listing_of(Shared()), np.random.default_rng(0)
    images, texts = (rng.normal(size=(count, 5)) for count in (24, 15))
    images, texts = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (images, texts))
    temperature, text, image, count = 0.3, 1, 4, 4000
    negatives = WholeSetNegatives(listing, torch.tensor(images), torch.tensor(texts), temperature)
    shape = np.full(count, text), np.full(count, image), rng.random((count, 2)), np.full(count, sharpness)
    wrong_images, wrong_texts, valid = negatives.draw(*shape)
    assert valid.all()
    pairs = [Shared()[row] for row in range(24)]
    sides = (
        (wrong_images, images @ texts[text], lambda j: listing.texts[text] in pairs[j]["text"]),
        (wrong_texts, texts @ images[image], lambda j: listing.texts[j] in pairs[image]["text"]),
    )
    warm = {row for row in range(24) if WARM in pairs[row]["text"]}
    assert listing.texts[text] == WARM
    assert len(warm) == 6
    for drawn, cosine, belongs in sides:
        mass = np.array([0.0 if belongs(j) else np.exp(sharpness * s / temperature) for j, s in enumerate(cosine)])
        found = np.bincount(drawn, minlength=len(mass)) / count
        assert not found[mass == 0].any()
        assert np.abs(found - mass / mass.sum()).max() < 4 * 0.5 / count**0.5


def test_a_rare_candidate_of_a_million_is_drawn_as_often_as_it_should():
    """Rounding of a cumulated sum in float32 would lose it."""
    from modeling_r2d2.training.negatives import _drawn

    candidates = torch.zeros(1_000_000, 1)
    uniform = torch.linspace(0, 1 - 1e-9, 100, dtype=torch.float64)[:, None]
    drawn = torch.cat(
        [_drawn(torch.zeros(1, 1), candidates, [np.array([0])], u[None], torch.ones(1, 1)) for u in uniform]
    )
    assert (drawn - (uniform[:, 0] * 999_999).long() - 1).abs().max() <= 2


def test_no_negative_at_all_is_refused(processor, tmp_path):  # noqa: F811
    class Same(Colors):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "text": "颜色"}

    with pytest.raises(ValueError, match="24 pictures with 1 texts have none: every text belongs to every picture"):
        build_trainer(model(), processor, Same(), ranker_settings(tmp_path))


# -- the samples --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(processor, tmp_path_factory):  # noqa: F811
    folder, masking = tmp_path_factory.mktemp("store") / "states", TextMasking(processor.tokenizer, mask_ratio=0.5)
    sampling = {"masking": masking, "seed": 0, "steps": 50, "step_size": 6, "ramp": 20}
    return frozen_towers_data(model(), processor, Shared(), folder, **sampling)


def test_samples_follow_from_their_position_alone(data):
    dataset, _ = data
    whole = dataset.__getitems__(list(range(100, 130)))
    for place in (0, 7, 29):
        [alone] = dataset.__getitems__([100 + place])
        assert repr(alone) == repr(whole[place])
    assert all(sample["valid"] for sample in whole)
    assert [dataset.sharpness(p) for p in (0, 5, 6, 60, 119, 120, 299)] == [0, 0, 1 / 20, 10 / 20, 19 / 20, 1, 1]
    first = [sample["image"] for sample in dataset.__getitems__(list(range(24)))]
    assert sorted(first) == list(range(24))


def test_the_batch(data, processor):  # noqa: F811
    dataset, collator = data
    batch = collator(dataset.__getitems__([3, 4, 5]))
    assert batch["image_states"].shape[0] == len(batch["input_ids"]) == len(batch["masked_input_ids"]) == 6
    assert batch["mlm_labels"].shape == batch["input_ids"][:3].shape
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    for place, sample in enumerate(dataset.__getitems__([3, 4, 5])):
        pair = Shared()[int(dataset.listing.rows[sample["image"]])]
        other = Shared()[int(dataset.listing.rows[sample["wrong_image"]])]
        own, wrong = (texts[each].replace(" ", "") for each in (place, 3 + place))
        assert own in pair["text"]
        assert wrong not in pair["text"]
        assert own not in other["text"]


def test_kept_states_give_the_loss_of_the_images_themselves(data, processor):  # noqa: F811
    """The same batch, its pictures through the tower, and every part by a numpy-free second way."""
    dataset, collator = data
    student = model(dropout=0.0).freeze_towers(masked_texts=True).train()
    kept = collator(dataset.__getitems__(list(range(6))))
    collator = copy.copy(collator)
    collator.images = Images(as_pairs(Shared()), dataset.listing.rows, processor)
    fresh = collator(dataset.__getitems__(list(range(6))))
    assert "pixel_values" in fresh
    outputs, same = student(**kept), student(**fresh)
    torch.testing.assert_close(same.loss, outputs.loss, rtol=1e-6, atol=1e-6)
    assert outputs.loss_gcpr is None
    torch.testing.assert_close(outputs.loss, outputs.loss_fgr + outputs.loss_mlm)
    # the whole forward pass of twelve pairs, of which the first six with these negatives
    states = student.get_image_features(fresh["pixel_values"]).last_hidden_state
    masked = student.get_text_features(fresh["masked_input_ids"], fresh["attention_mask"]).last_hidden_state
    plain = student.get_text_features(fresh["input_ids"], fresh["attention_mask"]).last_hidden_state
    own, behind = torch.arange(6), torch.arange(6, 12)
    pairs = (torch.cat([own, own, behind]), torch.cat([own, behind, own]))
    mask = fresh["attention_mask"]
    text = student.rank(masked, states, mask, *pairs).text_match_logits
    image = student.rank(plain, states, mask, *pairs).image_match_logits
    labels, weights = torch.tensor([1] * 6 + [0] * 12), torch.tensor([2.0] * 6 + [1.0] * 12)
    entropy = [torch.nn.functional.cross_entropy(each, labels, reduction="none") for each in (text, image)]
    expected = sum((each * weights).sum() / weights.sum() for each in entropy) / 2
    torch.testing.assert_close(outputs.loss_fgr, expected)


def test_a_pair_without_negatives_does_not_count(data):
    dataset, collator = data
    student = model(dropout=0.0).freeze_towers().train()
    batch = collator(dataset.__getitems__(list(range(6))))
    batch.pop("mlm_labels", None)
    batch.pop("masked_input_ids", None)
    batch["valid_negatives"][4] = False
    loss = student(**batch).loss_fgr
    batch["input_ids"][10], batch["image_states"][10] = batch["input_ids"][0], 0.0
    torch.testing.assert_close(student(**batch).loss_fgr, loss)


def test_numbers_that_do_not_go_together(data):
    dataset, collator = data
    batch = collator(dataset.__getitems__([0, 1]))
    batch["valid_negatives"] = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="3 pairs and their negatives are 6 images and texts; there are 4 images"):
        model()(**batch)


# -- the run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["r2d2", "stock"])
@pytest.mark.parametrize("mask_ratio", [None, 0.3])
def test_towers_stand_still(processor, tmp_path, kind, mask_ratio):  # noqa: F811
    """Bit for bit, running statistics too; the ranker moves, and MLM's head where it is asked for."""
    network = model(dropout=0.1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    options = ranker_settings(tmp_path, mask_ratio=mask_ratio, max_steps=4, weight_decay=0.1)
    run = build_trainer(network, processor, Shared(), options)
    if kind == "stock":
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=8,
            remove_unused_columns=False,
            use_cpu=True,
            learning_rate=1e-3,
            report_to="none",
            disable_tqdm=True,
        )
        run = Trainer(network, arguments, run.data_collator, run.train_dataset)
    run.train()
    assert any("num_batches_tracked" in name for name in before)
    moved = {
        name.split(".")[0] for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])
    }
    heads = {"image_joint_projection", "text_image_encoder", "image_text_encoder", "text_image_match_head"}
    assert moved == {*heads, "image_text_match_head", *["mlm_head"] * (mask_ratio is not None)}
    assert not network.vision_model.training
    losses = {name for entry in run.state.log_history for name in entry if name.startswith("loss_")}
    if kind == "r2d2":
        assert losses == {"loss_fgr", *["loss_mlm"] * (mask_ratio is not None)}
        assert run.state.log_history[0]["images_per_second"] > 0


def test_it_learns(processor, tmp_path):  # noqa: F811
    network = model("clip", 0.0)
    for parameter in network.parameters():  # towers of random weights whose states differ
        if parameter.dim() > 1:
            parameter.data.mul_(3)
    run = pretrain(network, processor, Colors(), ranker_settings(tmp_path, max_steps=120, learning_rate=3e-3))
    accuracy = [entry["ranking_accuracy"] for entry in run.state.log_history if "ranking_accuracy" in entry]
    assert np.mean(accuracy[-20:]) > 0.85


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_uninterrupted(processor, tmp_path, workers):  # noqa: F811
    options = {"max_steps": 4, "save_steps": 2, "mask_ratio": 0.3, "dataloader_num_workers": workers}
    whole = pretrain(model(), processor, Shared(), ranker_settings(tmp_path / "whole", **options))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    resumed = pretrain(model(), processor, Shared(), ranker_settings(tmp_path / "part", resume=True, **options))
    assert_equal(weights(resumed.model), weights(whole.model))


def test_accumulated_gradients_are_those_of_the_larger_batch(processor, tmp_path):  # noqa: F811
    found = []
    for batch, accumulation in ((8, 1), (4, 2)):
        options = ranker_settings(
            tmp_path / str(batch), max_steps=3, per_device_train_batch_size=batch, learning_rate=1e-3
        )
        options.arguments = {**options.arguments, "gradient_accumulation_steps": accumulation, "optim": "sgd"}
        found.append(weights(pretrain(model(dropout=0.0), processor, Shared(), options).model))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def _worker(number: int, folder: str) -> dict:
    options = ranker_settings(folder, max_steps=3, per_device_train_batch_size=4, mask_ratio=0.3)
    options.arguments = {**options.arguments, "optim": "sgd", "ddp_backend": "gloo"}
    return weights(build_and_train(options))


def build_and_train(options):
    tokenizer = build_character_tokenizer([Colors()[i]["text"] for i in range(8)], max_length=16)
    own = R2D2Processor.build(tokenizer, image_size=32, max_length=16)
    run = build_trainer(model(dropout=0.0), own, Shared(), options)
    run.train()
    return run.model


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    first, second = in_two_processes(_worker, str(tmp_path / "two"), launched=True)
    assert_equal(first, second)
    options = ranker_settings(tmp_path / "one", max_steps=3, per_device_train_batch_size=8, mask_ratio=0.3)
    options.arguments = {**options.arguments, "optim": "sgd"}
    for name, tensor in weights(build_and_train(options)).items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_cache_chunk": 2}, "trains no tower"),
        ({"gradient_shares": True}, "trains no tower"),
        ({"rank_from": 0.3}, "neither pre-ranking to begin with nor a teacher"),
        ({"queue_size": 8}, "belong to target-guided distillation"),
        ({"feature_guided": True}, "needs a teacher"),
        ({"publish": "teacher"}, "there is no teacher to publish"),
    ],
)
def test_settings_of_towers_that_train_are_refused(processor, tmp_path, changes, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        build_trainer(model(), processor, Shared(), ranker_settings(tmp_path, **changes))


def test_what_cannot_be_ranked_is_refused(processor, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="the recipe has ranking but the model has no ranker"):
        build_trainer(R2D2ForPreTraining(tiny_config(ranker=False)), processor, Shared(), ranker_settings(tmp_path))
    with pytest.raises(ValueError, match="a stream of shards has none"):
        build_trainer(model(), processor, StreamingPairs.__new__(StreamingPairs), ranker_settings(tmp_path))


def test_the_recipe():
    recipe = find_recipe("ranker")
    assert str(recipe) == "FGR on frozen towers, with negatives of the whole set"
    assert str(recipe.adapted(100, masking=True)) == "FGR + MLM on frozen towers, with negatives of the whole set"
    assert recipe.adapted(100, negative_ramp=0.2) == RankerRecipe(negative_ramp=0.2)
    assert recipe.callbacks() == []
