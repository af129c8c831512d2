"""docs/api is what the docstrings say today; and what makes it reads docstrings rightly."""

import re

import pytest

griffe = pytest.importorskip("griffe")  # of the extra [dev]

from docs.reference import build  # noqa: E402
from docs.reference.markdown import MissingDocstringError, document, signature, summary  # noqa: E402
from docs.reference.pages import PAGES  # noqa: E402
from docs.reference.sources import ROOT, find, public_names  # noqa: E402

from .pages import anchors  # noqa: E402

SOURCE = '''
from dataclasses import dataclass, field
from typing import ClassVar

class Thing(Base):
    """What it is: one of many.

    With a <tag> and width (B, D).

    Args:
        size, depth (in layers): how large. colour: of the inside; other
            than outside.
        name: shown.

    Returns:
        (B, D) float32,
        in order.

    Raises:
        ValueError: no size. OSError: no disk.
    """

    def __init__(self, size: int, depth: int = 2, *, colour: str | None = None, name="猫", **rest): ...

    def run(self, steps: int) -> float:
        """Go."""

    @property
    def length(self) -> int:
        """Of it, in pixels."""

    def _hidden(self): ...

@dataclass
class Settings:
    """Of a run. steps: how many."""

    steps: int = 3
    names: list[str] = field(default_factory=list)
    seen: Tensor = field(repr=False)
    kinds: ClassVar[int] = 1

def bare(x): ...
'''


@pytest.fixture
def module(tmp_path):
    path = ROOT / "modeling_r2d2" / "imagined.py"  # is not there: nothing reads the file
    return griffe.visit("imagined", filepath=path, code=SOURCE)


def test_pages_are_up_to_date():
    changed = build.out_of_date(build.all_pages())
    assert not changed, (
        f"docs/api/{', '.join(changed)} is not what the docstrings say: run `{build.COMMAND}` (make api)"
    )


def test_everything_exported_is_on_a_page():
    shown = {name for page in PAGES for part in page.parts for name in build.names_of(part)}
    for package in ("modeling_r2d2", "modeling_r2d2.processing"):
        assert set(public_names(package)) <= shown
    import modeling_r2d2

    assert set(modeling_r2d2._LAZY) <= shown


def test_names_lead_to_what_python_imports():
    """The file that griffe finds is where Python finds it, of eager, lazy and re-exported names."""
    import importlib

    for module, name in (
        ("modeling_r2d2", "R2D2Model"),
        ("modeling_r2d2", "R2D2Retriever"),
        ("modeling_r2d2.processing", "TextMasking"),
        ("modeling_r2d2.processing", "load_pairs"),
        ("modeling_r2d2.figures", "contact_sheet"),
        ("modeling_r2d2.hub_cards", "model_card"),
    ):
        found = getattr(importlib.import_module(module), name)
        assert find(module, name).path == f"{found.__module__}.{found.__qualname__}"
    with pytest.raises(KeyError, match="no public Nothing"):
        find("modeling_r2d2", "Nothing")


def test_a_class(module):
    text = document(module["Thing"])
    assert signature(module["Thing"]) == (
        "Thing(size: int, depth: int = 2, *, colour: str | None = None, name='猫', **rest)"
    )
    for line in (
        "### `Thing`",
        "Bases: `Base`.",
        "With a &lt;tag> and width (B, D).",
        "- `size`, `depth` (in layers): how large. `colour`: of the inside; other than outside.",
        "- `name`: shown.",
        "**Returns** (B, D) float32, in order.",
        "- `ValueError`: no size. `OSError`: no disk.",
        "#### `Thing.run`",
        "#### `Thing.length`",
        "[modeling_r2d2/imagined.py](../../modeling_r2d2/imagined.py)",
    ):
        assert line in text.splitlines(), (line, text)
    assert "_hidden" not in text
    assert summary(module["Thing"]) == "What it is: one of many."


def test_a_dataclass(module):
    assert signature(module["Settings"]) == "Settings(steps: int = 3, names: list[str] = list(), seen: Tensor)"
    assert "Of a run. `steps`: how many." in document(module["Settings"])


def test_no_docstring(module):
    line = SOURCE.splitlines().index("def bare(x): ...") + 1
    with pytest.raises(
        MissingDocstringError, match=rf"imagined.py:{line}: imagined.bare is public and has no docstring"
    ):
        document(module["bare"])


def test_table_of_contents_leads_to_headings():
    contents = (build.FOLDER / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([\w.]+)#([\w-]+)\)", contents)
    assert len(links) > 150
    for file, anchor in links:
        assert anchor in anchors(build.FOLDER / file), f"{file}#{anchor}"
