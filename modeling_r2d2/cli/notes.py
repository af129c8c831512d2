"""What several commands say beside their results."""

from typing import Any

from ..pipelines.inputs import text_limit, unknown_parts
from .terminal import Terminal

SHOWN = 10


def note_unknown(tokenizer: Any, config: Any, texts: list[str]) -> None:
    """Say on stderr which parts of the texts the model's vocabulary lacks."""
    if unknown := unknown_parts(tokenizer, texts, text_limit(tokenizer, config)) if texts else []:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        line = f"note: not in the model's vocabulary, read as {tokenizer.unk_token}: {' '.join(unknown[:SHOWN])}{more}"
        Terminal(stderr=True).print(line)


__all__ = ["note_unknown"]
