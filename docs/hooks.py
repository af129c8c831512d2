"""What the site needs beside the settings in mkdocs.yml: sources, front page, links, the command line."""

import ast
import configparser
import dataclasses
import importlib
import posixpath
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
_LAZY = re.compile(r"^_NAMES = (\{.*?\})", re.MULTILINE | re.DOTALL)
_LANGUAGE_LINK = re.compile(r"^\[(中文|English)\]\(\S+\)\n", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def link_packages(place: Path) -> Path:
    """A folder with the packages as `package_dir` of setup.cfg installs them, for readers of files such as griffe."""
    shutil.rmtree(place, ignore_errors=True)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = dict(line.split(" = ") for line in config["options"]["package_dir"].split("\n") if line)
    for package, folder in folders.items():  # the first is the one above the others
        below = place.joinpath(*package.split("."))
        below.mkdir(parents=True)
        for path in ROOT.joinpath(folder).iterdir():
            if path.suffix == ".py" or (path / "__init__.py").is_file():
                (below / path.name).symlink_to(path)
    return place


class LazyNames(griffe.Extension):
    """Names that a package imports on first use, from its table of modules and their names."""

    def on_package(self, *, pkg, **kwargs):
        for module in pkg.modules.values():
            if table := _LAZY.search(module.filepath.read_text(encoding="utf-8")) if module.is_init_module else None:
                places = {name: place for place, found in ast.literal_eval(table[1]).items() for name in found}
                module.exports = list(places)
                for name, place in places.items():
                    module.set_member(name, griffe.Alias(name, f"{module.path}.{place}.{name}"))


class DeclaredSettings(griffe.Extension):
    """Fields of settings: their help is their documentation, and their default is shown, not how it is declared."""

    def on_class_members(self, *, cls, **kwargs):
        declared = [
            member for member in cls.members.values() if str(getattr(member, "value", "")).startswith("setting(")
        ]
        made = getattr(importlib.import_module(cls.module.path), cls.name) if declared else None
        for member in declared:
            field = made.__dataclass_fields__[member.name]
            text = f"{field.metadata['help']} {' '.join(f'`{alias}`' for alias in field.metadata['aliases'])}"
            member.docstring = griffe.Docstring(text.strip(), lineno=member.lineno, parent=member)
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            member.value = None if default is dataclasses.MISSING else repr(default)


@cache
def command_line() -> str:
    """The verbs of `r2d2` and their options, as typer writes them."""
    words = [sys.executable, "-m", "typer", "modeling_r2d2.cli", "utils", "docs", "--name", "r2d2"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def on_startup(**kwargs):
    """Before the plugins look for the packages: a path that is not there by then is left out."""
    link_packages(ROOT / ".cache" / "packages")


def on_page_markdown(markdown, page, config, files):
    """The README in place of the front page, `r2d2 --help` below its title; links for the site's own folders."""
    source = f"docs/{page.file.src_uri}"
    if source == "docs/reference/command_line.md":
        return f"{markdown}\n" + re.sub(r"^#", "##", command_line(), flags=re.MULTILINE)
    front = {"docs/index.md": "README.md", "docs/index.zh.md": "README_zh.md"}.get(source)
    if front is not None:
        source, markdown = front, (ROOT / front).read_text(encoding="utf-8")
    here = posixpath.dirname(source)
    at = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match) -> str:
        text, target, anchor = match.groups(default="")
        path = posixpath.normpath(posixpath.join(here, target))
        path = {"README.md": "docs/index.md", "README_zh.md": "docs/index.zh.md"}.get(path, path)
        if not (ROOT / path).exists():
            return match[0]  # for the strict build to say so
        if (ROOT / path / "README.md").is_file():
            path += "/README.md"
        if not path.startswith("docs/"):  # only in the repository
            return f"{text} (`{path}`)"
        return f"[{text}]({posixpath.relpath(path.removeprefix('docs/'), at or '.')}{anchor})"

    return _LINK.sub(link, _LANGUAGE_LINK.sub("", markdown, count=1))
