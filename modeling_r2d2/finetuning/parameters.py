"""Which parameters train, at what rate and with what weight decay: by patterns on their names."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .settings import Decay


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's (or module's) name matches: a shell pattern (`text_model.encoder.layer.[0-5].*`), or the
    name of a part, which means all in it (`vision_model`)."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Freeze the parameters that match any of `patterns`.

    Returns:
        how many numbers were frozen.

    Raises:
        ValueError: a pattern that matches nothing, or nothing left to train.
    """
    frozen = 0
    for pattern in patterns:
        chosen = [p for name, p in model.named_parameters() if matches(name, pattern)]
        if not chosen:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"freeze pattern {pattern!r} matches no parameter; the parts of the model are {parts}")
        frozen += sum(p.numel() for p in chosen if p.requires_grad)
        for parameter in chosen:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("everything is frozen: there is nothing to train")
    return frozen


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules that have parameters, all of them frozen. They stay in evaluation mode while the rest
    trains: a frozen tower must not drop activations out, nor move the running statistics of its batch norms."""
    parameters = list(model.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return [model]
    return [found for child in model.children() for found in frozen_modules(child)]


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    decay: Decay = "matrices",
    rates: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimiser, of the trainable parameters alone; parameters of equal settings share a group.

    Args:
        decay: what decays: "all" (the authors' retrieval recipe), "not-biases" (their matching recipe), or
            "matrices": neither biases nor norms nor the temperature.
        rates: pattern -> factor on the learning rate; the last pattern that matches wins.

    Returns:
        mappings with `params`, `lr`, `weight_decay` and the parameters' `names`.

    Raises:
        ValueError: a pattern of `rates` that matches no trainable parameter.
    """
    rates = dict(rates or {})
    unused = set(rates)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        plain = plain_name(name)
        for pattern, value in rates.items():
            if matches(plain, pattern):
                scale = value
                unused.discard(pattern)
        decays = {"all": True, "not-biases": not name.endswith("bias"), "matrices": parameter.dim() > 1}[decay]
        settings = (learning_rate * scale, weight_decay if decays else 0.0)
        group = groups.setdefault(settings, {"params": [], "lr": settings[0], "weight_decay": settings[1], "names": []})
        group["params"].append(parameter)
        group["names"].append(plain)
    if unused:
        raise ValueError(f"rates for {', '.join(sorted(unused))} match no parameter that trains")
    return list(groups.values())


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT puts around the model."""
    return name.removeprefix("base_model.model.")


__all__ = ["freeze", "frozen_modules", "matches", "parameter_groups", "plain_name"]
