"""The pages that users read, and what is in them: code blocks, shell commands, links."""

import io
import re
import shlex
import tokenize
from pathlib import Path

from modeling_r2d2.hub_cards.checking import code_blocks

ROOT = Path(__file__).parents[2]
#: Guides and READMEs, by their path in the repository. docs/benchmarks is written by a program.
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def in_chinese(page: str) -> str:
    """The page in the other language, of an English one."""
    return "README_zh.md" if page == "README.md" else page.replace(".md", ".zh.md")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_blocks(page: str) -> list[str]:
    return [code for language, code in code_blocks(text_of(page)) if language == "python"]


def without_comments(code: str) -> list[str]:
    """What a block does, for comparing it with the same block in another language."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [token.string for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]


def commands(block: str) -> list[list[str]]:
    """The words of every command of a shell block; lines that a backslash joins are one."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shell_commands(page: str) -> list[list[str]]:
    return [words for language, code in code_blocks(text_of(page)) if language == "bash" for words in commands(code)]


def inline_commands(page: str) -> list[str]:
    """`r2d2 …` within a sentence."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [code for code in re.findall(r"`([^`]+)`", prose) if code.startswith("r2d2 ")]


def links(page: str) -> list[tuple[str, str]]:
    """(file, anchor) of every link and picture that is no address; the file is empty within the page."""
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    found = [target.partition("#") for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    return [(path, anchor) for path, _, anchor in found]


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
