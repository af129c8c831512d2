"""The page of the `r2d2` command: its verbs and their options, from the command itself."""

import click
import typer

from modeling_r2d2.cli import app

TITLE = "The `r2d2` command"


def page() -> str:
    """Every verb with a table of its arguments and options."""
    parts = [f"# {TITLE}", "What `r2d2 VERB --help` prints."]
    for name, command in _verbs(typer.main.get_command(app), "r2d2"):
        usage = " ".join([name, *(_usage(each) for each in command.params if _is_argument(each))])
        rows = [_row(each) for each in command.params if each.name != "help"]
        table = "\n".join(["| | default | |", "|---|---|---|", *rows])
        parts.append(f"## `{name}`\n\n{command.help}\n\n```bash\n{usage} [OPTIONS]\n```\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _verbs(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    if not hasattr(command, "commands"):
        return [(name, command)]
    return [found for verb, each in command.commands.items() for found in _verbs(each, f"{name} {verb}")]


def _is_argument(parameter: click.Parameter) -> bool:
    return parameter.param_type_name == "argument"


def _usage(argument: click.Argument) -> str:
    word = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def _row(parameter: click.Parameter) -> str:
    if _is_argument(parameter):
        name = f"`{parameter.name.upper()}`"
    else:  # a switch that is off needs no way to turn it off
        off = parameter.secondary_opts if parameter.default is not False else []
        name = ", ".join(f"`{option}`" for option in [*parameter.opts, *off])
    if parameter.required:
        default = "required"
    elif isinstance(parameter.default, bool):
        default = "on" if parameter.default else "off"
    else:
        default = "" if parameter.default in (None, (), []) else f"`{parameter.default}`"
    text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", r"\|")
    return f"| {name} | {default} | {text} |"
