"""What several commands say beside their results."""

import shlex
from typing import Any

from ..model.pipeline_inputs import text_limit, unknown_parts
from .terminal import Terminal

SHOWN = 10


def note_gone(results: list, index: Any) -> None:
    """Say on stderr how many of the pictures found are no longer where they were, and what to do."""
    hits = {hit.path: hit.problem for result in results for hit in result.hits}
    if gone := [path for path, problem in hits.items() if problem == "missing"]:
        line = (
            f"note: {len(gone):,} of {len(hits):,} pictures found are no longer where they were, such as {gone[0]}; "
            f"where they have moved, this finds them: r2d2 index NEW_FOLDER --output {shlex.quote(str(index))}"
        )
        Terminal(stderr=True).print(line)


def note_unknown(tokenizer: Any, config: Any, texts: list[str]) -> None:
    """Say on stderr which parts of the texts the model's vocabulary lacks."""
    if unknown := unknown_parts(tokenizer, texts, text_limit(tokenizer, config)) if texts else []:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        line = f"note: not in the model's vocabulary, read as {tokenizer.unk_token}: {' '.join(unknown[:SHOWN])}{more}"
        Terminal(stderr=True).print(line)


__all__ = ["note_gone", "note_unknown"]
