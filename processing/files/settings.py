"""Settings are declared once, as fields of a dataclass: options of the command line, help and ranges follow.

The metadata of a field are those that transformers' `HfArgumentParser` reads, "help" and "aliases", and besides them
"range" (bounds of `require_number`) and "argument" (on the command line it has no name, but a place).
"""

from dataclasses import MISSING, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...model.ranges_r2d2 import require_number


def setting(
    default: Any = MISSING,
    help: str = "",
    *aliases: str,
    bounds: dict[str, Any] | None = None,
    argument: bool = False,
) -> Any:
    """A field of a dataclass that is an option of the same name on the command line.

    Args:
        default: its value where none is given; a list or a dictionary is copied for each object.
        help: whole sentences. They say what the option does, and what its default means where the value does not.
        aliases: further names of the option, such as `--steps`.
        bounds: the range of a number, as `require_number` takes it.
        argument: its place in the command says what it is, not a name.
    """
    metadata = {"help": help, "aliases": list(aliases), "range": bounds, "argument": argument}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def require_settings(settings: Any) -> None:
    """Refuse numbers out of their range and words that are none of a field's choices.

    Args:
        settings: an object of a dataclass whose fields are made by `setting`. None passes: it means the default.

    Raises:
        ValueError: names the first setting that is wrong, its value and what it may be.
    """
    hints = get_type_hints(type(settings))
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value is None:
            continue
        if (bounds := each.metadata.get("range")) is not None:
            require_number(each.name, value, **bounds)
        if (choices := choices_of(hints[each.name])) and value not in choices:
            raise ValueError(f"{each.name} is {value!r}; use one of {', '.join(map(str, choices))}")


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, or of `Literal[…] | None`; of another type none."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((get_args(part) for part in get_args(hint) if get_origin(part) is Literal), ())


__all__ = ["choices_of", "require_settings", "setting"]
