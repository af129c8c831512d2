"""Loading a model to use it, with all its weights."""

from os import PathLike
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def load_whole(kind: Any, place: str | PathLike, fresh: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    """`kind.from_pretrained(place)`, refused where weights are missing, which transformers would make at random.

    Args:
        kind: a model class, or an Auto class.
        place: folder or Hub name.
        fresh: beginnings of the names of weights that may begin at random.

    Raises:
        ValueError: weights are missing; names the first of them.
        OSError: no such folder here, and no such model on the Hub.
    """
    try:
        model, info = kind.from_pretrained(place, output_loading_info=True, **options)
    except OSError as error:
        if Path(place).exists():
            raise
        reason = str(error).strip().split("\n")[0]
        raise OSError(f"{place}: there is no such folder here, and from the Hub: {reason}") from error
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(fresh)):
        raise ValueError(
            f"{place} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}: it holds a model "
            "of another kind, and they would be random"
        )
    return model


__all__ = ["load_whole"]
