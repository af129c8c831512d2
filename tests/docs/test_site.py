"""The site has a page for every public name, and its reader of docstrings understands each of them."""

import logging
import re

import pytest

griffe = pytest.importorskip("griffe")
pytest.importorskip("mkdocs_static_i18n")

from mkdocs.config import load_config  # noqa: E402

from docs import hooks  # noqa: E402

from .pages import ROOT  # noqa: E402


@pytest.fixture(scope="module")
def config():
    return load_config(str(ROOT / "mkdocs.yml"))


@pytest.fixture(scope="module")
def package(config, tmp_path_factory):
    options = config.plugins["mkdocstrings"].config.handlers["python"]["options"]
    return griffe.load(
        "modeling_r2d2",
        try_relative_path=False,
        search_paths=[hooks.link_packages(tmp_path_factory.mktemp("packages") / "all")],
        docstring_parser="google",
        docstring_options=options["docstring_options"],
        extensions=griffe.load_extensions(hooks.LazyNames, hooks.DeclaredSettings),
    )


def everything(item):
    for member in item.members.values():
        if not member.is_alias:
            yield member
            yield from everything(member)


def public_names(package):
    """The path of each, where it is defined; of the command line there is another page."""
    for module in [package, *(each for each in everything(package) if each.is_module)]:
        if module.is_init_module and module.name != "cli":
            yield from (module[name].canonical_path for name in module.exports or [])


def shown_names(package):
    for page in (ROOT / "docs/reference").glob("*.md"):
        for path in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            yield package[path.removeprefix("modeling_r2d2.")].canonical_path


def test_every_public_name_has_one_page(package):
    shown, public = list(shown_names(package)), set(public_names(package))
    assert len(public) > 150
    assert public <= set(shown)
    assert len(shown) == len(set(shown))


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {
        page.relative_to(ROOT / "docs").as_posix()
        for part in (".", "reference")
        for page in (ROOT / "docs" / part).glob("*.md")
    }
    assert {page for page in pages if ".zh." not in page} <= listed


def test_docstrings_are_read_whole(package, caplog):
    """Each has one argument a line, of the signature."""
    crowded = []
    with caplog.at_level(logging.WARNING, "griffe"):
        for item in everything(package):
            for section in item.docstring.parsed if item.docstring else []:
                if section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
                    names = "|".join(re.escape(each.name) for each in section.value)
                    others = rf"[.;] (?:{names}|\w+_\w+|\w+(?:, \w+)+): "
                    crowded += [item.path for each in section.value if re.search(others, each.description)]
    assert not caplog.messages
    assert not crowded
