"""A verb's options and its help, made from the dataclass of its settings."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from ..model.ranges_r2d2 import in_words


def add_verb(app: typer.Typer, name: str, run: Callable[[Any], None], example: str, panel: str | None = None) -> None:
    """Make a function of one settings object a verb of the command line.

    Args:
        app: where the verb is added.
        name: of the verb.
        run: takes an object of a dataclass, each of whose fields with a "help" (see `setting`) is an option. Its
            docstring is the verb's help. If the dataclass has a class method `from_options`, that makes the object; and
            what its attribute `unset` names is None where it was not given.
        example: a command that the help ends with.
        panel: of the verb in the list of verbs.
    """
    (kind,) = (hint for parameter, hint in get_type_hints(run).items() if parameter != "return")
    hints = get_type_hints(kind)
    options = [each for each in fields(kind) if each.metadata.get("help")]

    unset = getattr(kind, "unset", ())
    hints |= {name: hints[name] | None for name in unset}
    make = getattr(kind, "from_options", kind)

    def call(context: typer.Context, **given: Any) -> None:
        if context.obj is not None:  # what `main` does before a verb runs: help and completion do without
            context.obj()
        settings = make(**{each.name: _as_declared(given[each.name], hints[each.name], each) for each in options})
        with _within(settings):
            run(settings)

    # the verb's own options first, then those that it shares; of each panel first what must be given
    order = list(kind.__mro__)
    options.sort(key=lambda each: (order.index(_owner(kind, each.name)), _has_default(each)))
    parameters = [_parameter(each, hints[each.name], _owner(kind, each.name), each.name in unset) for each in options]
    place = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    call.__signature__ = inspect.Signature([place, *parameters])  # type: ignore[attr-defined]
    call.__annotations__ = {}
    call.__doc__ = run.__doc__
    app.command(name, cls=_Command, epilog=f"Example: {example}", rich_help_panel=panel)(call)


@contextmanager
def _within(settings: Any) -> Iterator[None]:
    """What options that many verbs have change for as long as a verb runs."""
    with ExitStack() as stack:
        if getattr(settings, "trust_remote_code", False):
            from ..inference.loading import trusting_remote_code

            stack.enter_context(trusting_remote_code())
        if getattr(settings, "max_pixels", None) is not None:
            stack.enter_context(_reading_pixels(settings.max_pixels))
        if getattr(settings, "device", None) is not None:
            require_device(settings.device)
        yield


@contextmanager
def _reading_pixels(limit: int) -> Iterator[None]:
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit  # which `open_image` heeds, also in workers
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def require_device(name: str) -> None:
    """Refuse a device that torch cannot compute on here.

    Raises:
        ValueError: says why, and which devices there are.
    """
    import torch

    try:
        if torch.device(name).type == "meta":
            raise ValueError("it computes nothing")
        torch.empty(1, device=name)
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError
        reason = str(error).strip().split("\n")[0]
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(f"--device {name} cannot be used here ({reason}); there is: {', '.join(there)}") from error


# -- from fields to options --------------------------------------------------------------------------


def _parameter(each: Field, hint: Any, owner: type, unset: bool) -> inspect.Parameter:
    name, help = each.name.replace("_", "-"), each.metadata["help"]
    if bounds := each.metadata["range"]:
        help = f"{help.removesuffix('.')} ({in_words(**bounds)})."
    common = {"help": help, "rich_help_panel": owner.__dict__.get("panel", "Options")}
    if each.metadata["argument"]:
        info: Any = typer.Argument(**common)
    else:
        # a switch that is off needs no name for off
        names = (
            [f"--{name}/--{'no-' + name}"]
            if _without_none(hint) is bool and each.default is not False
            else [f"--{name}"]
        )
        info = typer.Option(*names, *each.metadata["aliases"], **common)
    default: Any = inspect.Parameter.empty
    if unset:
        default = None
    elif _has_default(each):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        default = list(default) if isinstance(default, tuple | dict) else default
    annotation: Any = Annotated[_typed(hint), info]
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _typed(hint: Any) -> Any:
    """A field's type as typer reads it: what Python takes as anything is a word, a mapping lines of NAME=NUMBER."""
    plain = _without_none(hint)
    if plain is Any:
        return str | None
    if get_origin(plain) is tuple:
        plain = list[get_args(plain)[0]]  # type: ignore[misc]
    elif get_origin(plain) is dict:
        plain = list[str]
    return plain | None if type(None) in get_args(hint) else plain


def _without_none(hint: Any) -> Any:
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0] if type(None) in get_args(hint) else hint


def _as_declared(value: Any, hint: Any, each: Field) -> Any:
    """What typer has read as the field's own type."""
    origin = get_origin(_without_none(hint))
    if value is None or origin not in (list, tuple, dict):
        return value
    if type(None) in get_args(hint) and not value:
        return None
    if origin is not dict:
        return origin(value)
    found = {}
    for line in value:
        key, sign, number = line.rpartition("=")
        try:
            found[key] = float(number)
        except ValueError:
            sign = ""
        if not sign or not key:
            option = [*each.metadata["aliases"], f"--{each.name.replace('_', '-')}"][0]
            raise ValueError(f"{option} {line}: write a name and a number, as NAME=0.1")
    return found


def _owner(kind: type, name: str) -> type:
    """The class that declares a field; its attribute `panel` is the title of the field's panel in help."""
    return next(each for each in kind.__mro__ if name in each.__dict__.get("__annotations__", ()))


def _has_default(each: Field) -> bool:
    return each.default is not MISSING or each.default_factory is not MISSING


class _Panels:
    """Help in panels. Each option has a line of its own, so that no name is cut however narrow the terminal is."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[RenderableType]] = {}
        for parameter in self.get_params(ctx):
            name, text = parameter.get_help_record(ctx)
            title = getattr(parameter, "rich_help_panel", None) or "Options"
            panels.setdefault(title, []).extend(_entry(name, text))
        for name in self.list_commands(ctx) if hasattr(self, "list_commands") else ():
            child = self.get_command(ctx, name)
            panels.setdefault(child.rich_help_panel or "Commands", []).extend(
                _entry(name, child.get_short_help_str(500))
            )
        console = Console(markup=False, highlight=False, emoji=False)
        with console.capture() as shown:
            usage = " ".join(self.collect_usage_pieces(ctx))
            console.print(f"Usage: {ctx.command_path} {usage}", style="bold", end="\n\n")
            for paragraph in inspect.cleandoc(self.help or "").split("\n\n"):
                console.print(" ".join(paragraph.split()), end="\n\n")
            for title, entries in panels.items():
                console.print(Panel(Group(*entries), title=title, title_align="left", border_style="dim"))
            console.print(self.epilog or "", soft_wrap=True)
        formatter.write(shown.get())


def _entry(name: str, text: str) -> list[RenderableType]:
    return [Text(name, style="bold cyan"), Padding(Text(text), (0, 0, 0, 4))]


class _Command(_Panels, TyperCommand):
    pass


class VerbGroup(_Panels, TyperGroup):
    """A group of verbs, with help in panels."""


__all__ = ["VerbGroup", "add_verb", "require_device"]
