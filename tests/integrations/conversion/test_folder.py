"""`r2d2 convert`: a checkpoint becomes a folder that the Auto classes load."""

import re
import resource
from functools import partial

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor
from typer.testing import CliRunner

from modeling_r2d2 import R2D2ForPreTraining, R2D2Model, R2D2Processor
from modeling_r2d2.integrations import build_tokenizer, convert_to_folder, find_vocabulary
from modeling_r2d2.integrations import official_folder as folder
from modeling_r2d2.processing.files.digests import digest_of_file
from modeling_r2d2.processing.files.writing import is_partial
from tests.helpers import die, killed
from tests.integrations.conversion.official_files import head_tensors, official_tensors, training_leftovers, wide_config

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def vocab(tmp_path):
    """A vocab.txt of 50 tokens, as many as `wide_config` has."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *(chr(0x4E00 + i) for i in range(45))]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def source():
    return R2D2Model(wide_config()).eval()


@pytest.fixture
def checkpoint(source, tmp_path):
    torch.save({"model": {**official_tensors(source), **training_leftovers()}}, tmp_path / "official.pth")
    return tmp_path / "official.pth"


@pytest.fixture
def convert(checkpoint, vocab, tmp_path):
    return partial(convert_to_folder, checkpoint, tmp_path / "out", vocab=vocab)


def test_auto_classes_load_the_folder(convert, source, tmp_path):
    report = convert()
    out = tmp_path / "out"
    assert (out / "model.safetensors").is_file()
    model, processor = AutoModel.from_pretrained(out).eval(), AutoProcessor.from_pretrained(out)
    assert isinstance(model, R2D2Model)
    assert isinstance(processor, R2D2Processor)
    assert processor.tokenizer.model_max_length == 20  # the position table is shorter than 64 here
    inputs = processor(images=Image.new("L", (50, 30)), text=["一丁七", "丁" * 40], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 20)
    assert inputs["pixel_values"].shape == (1, 3, 24, 24)
    with torch.no_grad():
        actual, expected = model(**inputs).logits_per_image, source(**inputs).logits_per_image
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert not report.has_head


def test_head_loads_for_pre_training(source, vocab, tmp_path):
    head = head_tensors(source.config)
    torch.save({"model": {**official_tensors(source), **head}}, tmp_path / "pretrained.pth")
    report = convert_to_folder(tmp_path / "pretrained.pth", tmp_path / "out", vocab=vocab)
    assert report.has_head
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    assert isinstance(model, R2D2ForPreTraining)
    assert torch.equal(model.mlm_head.dense.weight, head["text_joint_layer.cls.predictions.transform.dense.weight"])
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is R2D2Model


def test_card_says_where_the_weights_come_from(convert, checkpoint, tmp_path):
    report = convert(source="a friend's disk")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "other"
    assert card.data.language == "zh"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    for text in (
        "official.pth",
        digest_of_file(checkpoint, "sha256"),
        "a friend's disk",
        "Nothing was trained here",
        *report.unused,
    ):
        assert text in card.content
    assert "{" not in re.sub(r"```.*?```", "", card.text, flags=re.DOTALL)


def test_folder_that_holds_a_model(convert, tmp_path):
    convert()
    before = (tmp_path / "out" / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"already holds a model \(.*config\.json.*--overwrite"):
        convert()
    convert(overwrite=True)
    assert (tmp_path / "out" / "config.json").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        convert_to_folder(tmp_path / "official.pth", tmp_path / "file", vocab=tmp_path / "vocab.txt")


def test_nothing_is_written_where_conversion_fails(convert, tmp_path):
    (tmp_path / "official.pth").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        convert()
    assert not (tmp_path / "out").exists()


def test_conversion_that_is_killed_or_finds_the_disk_full(convert, tmp_path, monkeypatch):
    """Nothing half-written counts as a model, and the next conversion clears it away; others' files stay."""
    output = tmp_path / "out"

    def interrupted():
        monkeypatch.setattr(R2D2Processor, "save_pretrained", die)
        convert()

    assert killed(interrupted)
    assert all(is_partial(path) for path in output.iterdir())

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="is full") as caught:
            convert()
        assert "\n" not in str(caught.value)
        die()

    assert killed(full)
    assert not list(output.iterdir())
    convert()
    written = {path.name for path in output.iterdir()}
    assert not any(map(is_partial, written))
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1
    (output / "notes.txt").write_text("mine")
    convert(overwrite=True)
    assert {path.name for path in output.iterdir()} == {*written, "notes.txt"}
    (output / "README.md").write_text("my own card")
    with pytest.raises(FileExistsError, match=r"README\.md is not, or no longer, as this program wrote it"):
        convert(overwrite=True)
    assert (output / "README.md").read_text() == "my own card"


class TestVocabulary:
    def test_of_another_model(self, convert, vocab):
        vocab.write_text("\n".join(SPECIAL_TOKENS), encoding="utf-8")
        with pytest.raises(ValueError, match="5 tokens, but the checkpoint's token embeddings have 50 rows"):
            convert()

    def test_folder_of_a_tokenizer(self, vocab, tmp_path):
        assert build_tokenizer(tmp_path).get_vocab() == build_tokenizer(vocab).get_vocab()
        build_tokenizer(vocab).save_pretrained(tmp_path / "tokenizer")
        assert build_tokenizer(tmp_path / "tokenizer").get_vocab() == build_tokenizer(vocab).get_vocab()

    def test_odd_tokens_keep_their_lines(self, tmp_path):
        tokens = [*SPECIAL_TOKENS, "a", "\u2028", "\x85", "b"]
        (tmp_path / "odd.txt").write_text("\r\n".join(tokens) + "\r\n", encoding="utf-8", newline="")
        assert build_tokenizer(tmp_path / "odd.txt").get_vocab() == {token: i for i, token in enumerate(tokens)}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"[PAD]\n[UNK]\n", r"\[CLS\], \[SEP\], \[MASK\] not among its 2 lines"),
            ("\n".join([*SPECIAL_TOKENS, "a", "b", "a"]).encode(), r"vocab.txt:8: token 'a' occurs again.*line 6"),
            (b"\xff\xfe\x00", "is not a vocabulary"),
        ],
    )
    def test_not_a_vocabulary(self, vocab, content, message):
        vocab.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            build_tokenizer(vocab)

    def test_absent(self, convert, tmp_path, monkeypatch):
        with pytest.raises(FileNotFoundError, match="no such vocabulary file"):
            build_tokenizer(tmp_path / "absent.txt")
        monkeypatch.setattr(folder, "find_vocabulary", lambda: None)
        with pytest.raises(FileNotFoundError, match="hfl/chinese-roberta-wwm-ext.*--vocab.*cn-clip"):
            convert(vocab=None)

    def test_found_in_an_installed_package_without_importing_it(self, vocab, tmp_path, monkeypatch):
        site = tmp_path / "site"
        (site / "cn_clip" / "clip").mkdir(parents=True)
        (site / "cn_clip" / "__init__.py").write_text("raise RuntimeError('imported')")
        (site / "cn_clip-9.9.dist-info").mkdir()
        (site / "cn_clip-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: cn-clip\nVersion: 9.9\n")
        monkeypatch.syspath_prepend(site)
        assert find_vocabulary() is None
        vocab.rename(site / "cn_clip" / "clip" / "vocab.txt")
        assert find_vocabulary() == site / "cn_clip" / "clip" / "vocab.txt"
        assert len(build_tokenizer()) == 50


class TestCommand:
    @pytest.fixture
    @staticmethod
    def run():
        from modeling_r2d2.cli import app

        return lambda *arguments: CliRunner().invoke(app, ["convert", *map(str, arguments)])

    def test_converts_and_lists(self, run, checkpoint, vocab, tmp_path):
        result = run(checkpoint, tmp_path / "out", "--vocab", vocab)
        assert result.exit_code == 0, result.output
        for name in ("text_queue", "visual_encoder.post_layernorm.bias", "text_joint_layer.embeddings.position_ids"):
            assert name in result.output.split()
        assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), R2D2Model)

    def test_options(self, run, source, vocab, tmp_path):
        tensors = {**official_tensors(source), **head_tensors(source.config), "extra.weight": torch.zeros(1)}
        torch.save({"model": tensors}, tmp_path / "x.pth")
        source.config.save_pretrained(tmp_path / "config")
        arguments = (tmp_path / "x.pth", tmp_path / "out", "--vocab", vocab, "--config", tmp_path / "config")
        refused = run(*arguments)
        assert isinstance(refused.exception, ValueError)
        assert "unknown tensors: extra.weight" in str(refused.exception)
        assert run(*arguments, "--allow-unknown", "--no-head").exit_code == 0
        assert isinstance(run(*arguments, "--allow-unknown").exception, FileExistsError)
        result = run(*arguments, "--allow-unknown", "--head", "--overwrite")
        assert result.exit_code == 0, result.output
        assert "R2D2ForPreTraining" in result.output
