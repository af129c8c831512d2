"""Embeddings of classes that have several names and prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.processing_r2d2 import R2D2Processor
from ..model.prompts_r2d2 import class_means, class_prompts
from .encoding import TwoTowers, encode_texts, is_token_wise


def prompts_of(names: Sequence[Sequence[str]], prompts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Every name of C classes in every prompt, those of a name next to each other; and the class of each text.

    Raises:
        ValueError: a prompt without `{}`, a class without a name.
    """
    if any(len(some) == 0 for some in names):
        raise ValueError("a class has no name")
    texts = class_prompts([name for some in names for name in some], prompts)
    return texts, torch.arange(len(names)).repeat_interleave(torch.tensor([len(some) * len(prompts) for some in names]))


def class_embeddings(
    model: TwoTowers,
    processor: R2D2Processor,
    names: Sequence[Sequence[str]],
    prompts: Sequence[str],
    batch_size: int = 256,
) -> Tensor:
    """(C, D) float32, L2-normalised: the mean over the names of a class and the prompts.

    Raises:
        ValueError: a prompt without `{}`, a class without a name, a model that compares token by token.
    """
    if is_token_wise(model):
        raise ValueError("this model compares token by token, so prompts have no mean embedding: use `classify`")
    texts, owner = prompts_of(names, prompts)
    embeds = encode_texts(model, processor, texts, batch_size, keep_states=False).embeds
    return class_means(embeds, owner, len(names))


__all__ = ["class_embeddings", "prompts_of"]
