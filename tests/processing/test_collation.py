"""From pairs to batches: exact preprocessing, and a stream that depends on seed and position alone."""

import logging
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import skip_first_batches
from PIL import Image
from torch.utils.data import DataLoader

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.processing.augmentation import R2D2Augmentation
from modeling_r2d2.processing.batch_augmentation import BatchAugmentation
from modeling_r2d2.processing.collation import (
    PretrainingDataset,
    R2D2PretrainingCollator,
    SampleEncoder,
    StreamingPretrainingDataset,
)
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.records import stable_id
from modeling_r2d2.processing.datasets.report import DataRefusedError
from modeling_r2d2.processing.masking import IGNORE_INDEX, TextMasking
from tests.helpers import tiny_image, tiny_processor
from tests.tiny import tiny_config

from .conftest import png
from .test_streaming import write_tar

TEXTS = ("一只猫", "两条红鱼在水", "大狗", "一张马的图片", "白花", "小鸟在天", "黑车", "木船", "山", "火")


class Pairs:
    """Ten concepts, two pictures each; every third has two texts."""

    reads = 0

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.reads += 1
        text = TEXTS[index % 10]
        text = [text, f"一张{text}的图片"] if index % 3 == 0 else text
        return {"image": tiny_image(index, 30 + index, 40), "text": text, "image_id": f"c{index % 10}"}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(max_length=16, image_size=32)


def make(processor, **changes) -> PretrainingDataset:
    settings = {
        "augmentation": R2D2Augmentation(size=32),
        "masking": TextMasking(processor.tokenizer),
        "seed": 3,
        "shuffle": True,
    }
    return PretrainingDataset(Pairs(), processor, **{**settings, **changes})


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def batches(dataset, processor, **options) -> list[dict]:
    return list(DataLoader(dataset, batch_size=5, collate_fn=R2D2PretrainingCollator(processor), **options))


class TestBatch:
    def test_evaluation_batch_equals_the_processor(self, processor):
        dataset = PretrainingDataset(Pairs(), processor)
        batch = R2D2PretrainingCollator(processor)([dataset[i] for i in range(20)])
        pairs = [Pairs()[i] for i in range(20)]
        texts = [p["text"] if isinstance(p["text"], str) else p["text"][0] for p in pairs]
        expected = processor(images=[p["image"] for p in pairs], text=texts, return_tensors="pt")
        assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "image_ids", "return_loss"}
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])
        assert batch["pixel_values"].dtype == torch.float32
        torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0)
        assert batch["image_ids"].dtype == torch.int64
        assert batch["image_ids"].tolist() == [stable_id(f"c{i % 10}") for i in range(20)]
        assert batch["return_loss"] is True

    def test_training_batch(self, processor):
        batch = batches(make(processor), processor)[0]
        ids, labels, masked = batch["input_ids"], batch["mlm_labels"], batch["masked_input_ids"]
        assert ids.shape == labels.shape == masked.shape == batch["attention_mask"].shape
        assert all(batch[name].dtype == torch.int64 for name in ("input_ids", "mlm_labels", "masked_input_ids"))
        chosen = labels != IGNORE_INDEX
        assert torch.equal(ids[chosen], labels[chosen])
        assert torch.equal(ids[~chosen], masked[~chosen])
        assert chosen.any()
        padding = batch["attention_mask"] == 0
        assert padding.any()
        assert (ids[padding] == processor.tokenizer.pad_token_id).all()
        assert not chosen[padding].any()
        assert batch["attention_mask"].sum(dim=1).max() == ids.shape[1]

    def test_the_model_takes_it(self, processor):
        model = R2D2ForPreTraining(tiny_config(max_text_length=16))
        output = model(**batches(make(processor), processor)[0])
        assert torch.isfinite(output.loss)
        output.loss.backward()

    def test_whole_words(self, processor):
        masking = TextMasking(processor.tokenizer, 0.5, whole_words=True, segment=lambda text: [text[:2], text[2:]])
        for sample in (make(processor, masking=masking)[i] for i in range(20)):
            chosen = (sample["mlm_labels"] != IGNORE_INDEX)[1:-1]
            assert len(set(chosen[:2])) == 1
            assert len(set(chosen[2:])) <= 1

    def test_long_texts_are_truncated_with_one_warning(self, processor, caplog):
        encoder = SampleEncoder(processor)
        pair = {"image": tiny_image(), "image_id": 0}
        with caplog.at_level(logging.WARNING):
            lengths = [
                len(encoder({**pair, "text": n * "猫"}, np.random.default_rng())["input_ids"]) for n in (14, 15, 99)
            ]
        assert lengths == [16, 16, 16]
        assert [record.message for record in caplog.records] == [
            "a text of 17 tokens was truncated to 16: " + 15 * "猫"
        ]

    def test_images_may_be_paths_or_of_other_modes(self, processor, tmp_path):
        encoder = SampleEncoder(processor)
        tiny_image().save(tmp_path / "x.png")
        first, second, third = (
            encoder({"image": image, "text": "猫", "image_id": 0}, np.random.default_rng())["pixel_values"]
            for image in (tmp_path / "x.png", tiny_image(), tiny_image().convert("RGBA"))
        )
        assert np.array_equal(first, second)
        assert np.array_equal(second, third)

    @pytest.mark.parametrize("size", [(30, 20), (20, 30), (16, 16), (20, 20), (64, 48)])
    def test_cropped_images_are_those_of_the_processor(self, processor, size):
        """Where the shorter side is first brought to more than what is cropped."""
        crop = {"do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
        cropping = R2D2Processor.build(processor.tokenizer, size={"shortest_edge": 20}, **crop)
        coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        pair = {"image": image, "text": "猫", "image_id": "0"}
        found = SampleEncoder(cropping)(pair, np.random.default_rng(0))["pixel_values"]
        expected = cropping(images=[image], do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"]
        assert np.array_equal(found, expected[0].transpose(1, 2, 0))

    def test_processors_that_make_no_one_size_are_refused(self, processor):
        from transformers import CLIPImageProcessorPil

        class Other:
            tokenizer = processor.tokenizer
            image_processor = CLIPImageProcessorPil(do_center_crop=False)

        with pytest.raises(ValueError, match="neither squashes"):
            SampleEncoder(Other())


class TestStream:
    @pytest.mark.parametrize("options", [{"num_workers": 1}, {"num_workers": 2, "persistent_workers": True}])
    def test_workers_change_nothing(self, processor, options):
        dataset = make(processor, passes=2, distinct_batch=5)
        alone = batches(dataset, processor)
        assert len(alone) == 8
        assert all(equal(a, b) for a, b in zip(alone, batches(dataset, processor, **options), strict=True))

    def test_positions_in_any_order(self, processor):
        dataset, other = make(processor, passes=3), make(processor, passes=3)
        forward = [dataset[i] for i in range(60)]
        for i in np.random.default_rng(0).permutation(60):
            sample = other[int(i)]
            assert all(np.array_equal(sample[name], forward[i][name]) for name in sample)
        with pytest.raises(IndexError):
            dataset[60]

    def test_a_pass_visits_everything_and_differs_from_the_next(self, processor):
        dataset = make(processor, passes=2)
        ids = [dataset[i]["image_ids"] for i in range(40)]
        assert sorted(ids[:20]) == sorted(ids[20:]) == sorted(dataset.image_ids().tolist())
        assert ids[:20] != ids[20:]

    def test_seed_and_epoch_change_everything(self, processor):
        first = make(processor)[0]
        other_seed = make(processor, seed=4)[0]
        dataset = make(processor)
        dataset.set_epoch(1)
        other_epoch = dataset[0]
        dataset.set_epoch(0)
        assert np.array_equal(first["pixel_values"], dataset[0]["pixel_values"])
        for other in (other_seed, other_epoch):
            assert not np.array_equal(first["pixel_values"], other["pixel_values"])

    def test_batches_of_distinct_ids(self, processor):
        for batch in batches(make(processor, passes=3, distinct_batch=5), processor):
            assert len(set(batch["image_ids"].tolist())) == 5

    def test_one_of_several_texts(self, processor):
        encoder, pair = SampleEncoder(processor), {**Pairs()[0], "text": ["猫", "大狗"]}
        lengths = {len(encoder(pair, np.random.default_rng(seed))["input_ids"]) for seed in range(20)}
        assert lengths == {3, 4}

    def test_nothing_to_read(self, processor):
        with pytest.raises(ValueError, match="no pairs"):
            PretrainingDataset([], processor)


class TestAccelerate:
    """What Trainer does with the loader: `prepare`, `set_epoch`, and skipping what was seen before an interruption."""

    def loader(self, dataset, processor, **options):
        collator = R2D2PretrainingCollator(processor)
        return Accelerator(cpu=True).prepare(DataLoader(dataset, batch_size=5, collate_fn=collator, **options))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_set_epoch_reaches_the_data_set_and_living_workers(self, processor, workers):
        options = {"num_workers": workers, "persistent_workers": bool(workers)}
        loader = self.loader(make(processor), processor, **options)
        found = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            found.append(list(loader))
        dataset = make(processor)
        for epoch in range(2):
            dataset.set_epoch(epoch)
            assert all(equal(a, b) for a, b in zip(found[epoch], batches(dataset, processor), strict=True))

    def test_skipping_resumes_exactly_and_reads_nothing_before(self, processor):
        dataset = make(processor, passes=3, distinct_batch=5)
        whole = batches(dataset, processor)
        dataset = make(processor, passes=3, distinct_batch=5)
        dataset.image_ids()
        dataset.pairs.pairs.reads = 0
        resumed = list(skip_first_batches(self.loader(dataset, processor), 9))
        assert dataset.pairs.pairs.reads <= 15
        assert all(equal(a, b) for a, b in zip(whole[9:], resumed, strict=True))


class TestCache:
    def test_images_are_read_once(self, processor):
        dataset, fresh = make(processor, passes=3), make(processor, passes=3, cache_bytes=0)
        dataset._image_ids = fresh._image_ids = np.arange(20)
        for position in range(60):
            one, other = dataset[position], fresh[position]
            assert all(np.array_equal(one[name], other[name]) for name in one)
        assert dataset.pairs.pairs.reads == 20
        assert fresh.pairs.pairs.reads == 60

    def test_it_stays_within_its_bound(self, processor):
        dataset = make(processor, cache_bytes=20_000)
        for position in range(20):
            dataset[position]
        held = sum(np.asarray(pair["image"]).nbytes for pair in dataset._cache.values())
        assert 10_000 < held <= 20_000


class TestBrokenImages:
    @pytest.fixture
    def pairs(self, image_folder):
        lines = [f'{{"image": "{name}.png", "text": "猫"}}' for name in ("0", "half", "1", "2", "3", "4")]
        (image_folder / "data.jsonl").write_text("\n".join(lines))
        return load_pairs(image_folder / "data.jsonl", max_error_rate=0.2)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_next_pair_stands_in_and_the_report_tells(self, processor, pairs, workers):
        found = batches(PretrainingDataset(pairs, processor, passes=3), processor, num_workers=workers)
        ids = torch.cat([batch["image_ids"] for batch in found]).tolist()
        assert len(ids) == 18
        assert ids[1] == ids[2] == stable_id("1.png")
        assert [str(p) for p in pairs.report.access_problems][0].split(": ")[0].endswith("data.jsonl:2")
        assert pairs.report.errors == 1

    @pytest.mark.parametrize("workers", [0, 1])
    def test_too_many_stop_training(self, processor, pairs, workers):
        pairs.report.max_error_rate = 0.01
        with pytest.raises(DataRefusedError, match=r"1 bad of 6 records:\n.*data\.jsonl:2: .*half\.png"):
            batches(PretrainingDataset(pairs, processor), processor, num_workers=workers)


class TestStreamingDataset:
    @pytest.fixture
    def shards(self, tmp_path):
        for shard in range(2):
            members = []
            for n in range(5):
                members += [(f"{n}.png", png(5 * shard + n)), (f"{n}.txt", TEXTS[5 * shard + n])]
            write_tar(tmp_path / f"{shard}.tar", members)
        return tmp_path / "*.tar"

    def make(self, processor, shards):
        pairs = load_pairs(shards)
        return StreamingPretrainingDataset(
            pairs, processor, R2D2Augmentation(size=32), TextMasking(processor.tokenizer), seed=1
        )

    def test_samples_do_not_depend_on_workers(self, processor, shards):
        dataset = self.make(processor, shards)
        alone = {sample["image_ids"]: sample for sample in dataset}
        shared = list(DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=lambda sample: sample))
        assert len(alone) == len(shared) == 10
        for sample in shared:
            other = alone[sample["image_ids"]]
            assert all(np.array_equal(sample[name], other[name]) for name in sample)

    def test_epochs_differ_and_batches_are_collated(self, processor, shards):
        dataset = self.make(processor, shards)
        first = batches(dataset, processor)
        dataset.set_epoch(1)
        second = batches(dataset, processor)
        assert len(first) == len(second) == 2
        assert not torch.equal(first[0]["pixel_values"], second[0]["pixel_values"])


def test_a_sample_takes_less_than_a_millisecond_and_a_half():
    """72 px to 40 px with augmentation and masking: best of several, since the machine is shared."""
    processor = tiny_processor(max_length=16, image_size=40)

    class Drawings(Pairs):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "image": tiny_image(index, 72, 72)}

    dataset = PretrainingDataset(
        Drawings(), processor, BatchAugmentation(), TextMasking(processor.tokenizer), passes=20, shuffle=True
    )
    times = []
    for start in range(0, 400, 40):
        begin = time.process_time()
        dataset.__getitems__(list(range(start, start + 40)))
        times.append((time.process_time() - begin) / 40)
    assert min(times) < 1.5e-3
