"""SigLIP's tokenizer, which is written in Python and needs the package sentencepiece."""

import io
import json
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModel, AutoProcessor, SiglipImageProcessorPil, SiglipProcessor
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Model, R2D2Processor
from modeling_r2d2.cli import app
from modeling_r2d2.hub_cards.push import plan_push
from modeling_r2d2.inference.identity import ModelIdentity
from modeling_r2d2.inference.loading import load_processor, load_whole
from modeling_r2d2.inference.models import load_model
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from tests.helpers import CHARACTERS, tiny_image
from tests.integrations.conversion.dual_encoder_sources import SQUARE, own_inputs, save

TEXTS = ["一只猫", "Cat, DOG!", "a  b", "红色的鱼在水 xyz" * 9]


def tokenizer(folder, more: str = ""):
    """Of its own pieces, saved in `folder`."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c x y z cat dog bird"] * 5 + list(CHARACTERS + more) * 3),
        model_writer=pieces,
        vocab_size=80,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("siglip")
    own = tokenizer(root)
    save(root / "source", "siglip", vocab_size=len(own))
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (root / "source" / file).unlink()
    SiglipProcessor(SiglipImageProcessorPil(size=SQUARE), own).save_pretrained(root / "source")
    return root / "source"


def test_numbers_are_those_of_the_source(source, tmp_path):
    convert_dual_encoder_to_folder(source, tmp_path / "out")
    own, images = AutoModel.from_pretrained(source).eval(), [tiny_image(number) for number in range(3)]
    theirs = own_inputs("siglip", AutoProcessor.from_pretrained(source), images, TEXTS)
    for place in (source, tmp_path / "out"):
        processor = load_processor(R2D2Processor, place)
        assert not processor.tokenizer.is_fast
        ours = processor(images=images, text=TEXTS, return_tensors="pt")
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        with torch.no_grad():
            found, expected = load_whole(R2D2Model, place)(**ours), own(**theirs)
        torch.testing.assert_close(found.logits_per_image, expected.logits_per_image, rtol=1e-6, atol=1e-5)
    assert plan_push(tmp_path / "out").problems == []
    assert "spiece.model" in plan_push(tmp_path / "out").files


def test_an_index_knows_its_tokenizer(source, tmp_path):
    """A converted folder is the same model; other pieces, or upper case that counts, make another."""
    convert_dual_encoder_to_folder(source, tmp_path / "out")
    model, processor = load_model(source)
    identity = ModelIdentity.of(model, processor)
    converted = ModelIdentity.of(*load_model(tmp_path / "out"))
    assert (converted.weights, converted.preprocessing) == (identity.weights, identity.preprocessing)
    cased = load_processor(R2D2Processor, source)
    cased.tokenizer.init_kwargs["do_lower_case"] = False
    others = load_processor(R2D2Processor, source)
    others.tokenizer = tokenizer(tmp_path, more="甲乙丙")
    others.tokenizer.model_max_length = processor.tokenizer.model_max_length
    for other in (cased, others):
        assert ModelIdentity.of(model, other).preprocessing != identity.preprocessing
    (tmp_path / "images").mkdir()
    tiny_image(1).save(tmp_path / "images" / "1.png")
    for command in (
        ["index", tmp_path / "images", "--model", source, "--output", tmp_path / "index"],
        ["search", tmp_path / "index", "一只猫"],
    ):
        result = CliRunner().invoke(app, list(map(str, command)))
        assert result.exit_code == 0, result.exception


def test_without_the_package(tmp_path, monkeypatch):
    """One line says what to install."""
    folder = save(tmp_path / "source", "siglip")
    values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**values, "tokenizer_class": "SiglipTokenizer"}))
    (folder / "spiece.model").write_bytes(b"")
    if find_spec("sentencepiece"):

        def lacking(*_, **__):
            raise ImportError("\nSiglipTokenizer requires the SentencePiece library but it was not found\nin your …")

        monkeypatch.setattr(AutoProcessor, "from_pretrained", lacking)
    expected = "source: its tokenizer needs sentencepiece: pip install 'modeling-r2d2\\[siglip\\]'$"
    for load in (load_model, lambda place: convert_dual_encoder_to_folder(place, tmp_path / "out")):
        with pytest.raises(ImportError, match=expected) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
