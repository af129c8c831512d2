"""All pages of the reference, and which of them are out of date."""

from . import command_line
from .markdown import document, summary
from .pages import PAGES, Page, Part
from .sources import ROOT, find, public_names

FOLDER = ROOT / "docs" / "api"
COMMAND = "python -m docs.reference"
_NOTE = f"<!-- Written by `{COMMAND}` (`make api`) from the docstrings: change those, not this file. -->"


def all_pages() -> dict[str, str]:
    """File name in docs/api -> its text.

    Raises:
        MissingDocstringError: a public name without a docstring. KeyError: a name that is not there.
    """
    made = {page.file: _page(page) for page in PAGES}
    made["cli.md"] = f"{_NOTE}\n\n{command_line.page()}"
    made["README.md"] = _contents()
    return made


def out_of_date(made: dict[str, str]) -> list[str]:
    """Pages whose files differ from what the sources say today, and files that are no page any more."""
    held = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    return sorted(name for name in made.keys() | held.keys() if made.get(name) != held.get(name))


def write(made: dict[str, str]) -> list[str]:
    """Bring docs/api up to date; returns the names of what changed."""
    changed = out_of_date(made)
    FOLDER.mkdir(exist_ok=True)
    for name in changed:
        if name in made:
            (FOLDER / name).write_text(made[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return changed


def names_of(part: Part) -> list[str]:
    """The names that stand below a heading."""
    return part.names.split() or public_names(part.module)


def _page(page: Page) -> str:
    parts = [_NOTE, f"# {page.title}", page.text]
    for part in page.parts:
        parts += [f"## {part.title}", f"`from {part.module} import …`"]
        parts += [document(find(part.module, name)) for name in names_of(part)]
    return "\n\n".join(parts) + "\n"


def _contents() -> str:
    parts = [
        _NOTE,
        "# API reference",
        "Made of the docstrings. The [guides](../../README.md#first-steps) show how the parts work together; the "
        "command line has [a page of its own](cli.md).",
    ]
    for page in PAGES:
        rows = [_row(page, part, name) for part in page.parts for name in names_of(part)]
        parts.append("\n".join([f"## [{page.title}]({page.file})", "", "| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _row(page: Page, part: Part, name: str) -> str:
    about = summary(find(part.module, name)).replace("|", r"\|")
    return f"| [`{name}`]({page.file}#{name.lower()}) | {about} |"
