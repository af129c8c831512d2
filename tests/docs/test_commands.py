"""What the guides tell a reader to type exists: verbs and options of `r2d2`, scripts, linked files and headings."""

import re

import pytest
import typer

from modeling_r2d2.cli import app
from modeling_r2d2.hub_cards.checking import code_blocks

from .pages import PAGES, ROOT, anchors, in_chinese, inline_commands, links, shell_commands, text_of

#: Programs that other projects bring.
FOREIGN = {"pip", "python3", "img2dataset", "hf", "make", "source"}


def find_verb(words):
    """The command object of `r2d2 …`, its name, and the words after it."""
    command, name = typer.main.get_command(app), "r2d2"
    while hasattr(command, "commands"):
        assert words, f"{name} lacks a verb"
        name, *words = words
        assert name in command.commands, f"there is no verb {name!r}; there are {', '.join(command.commands)}"
        command = command.commands[name]
    return command, name, words


def options_of(command):
    return {option for each in command.params for option in [*each.opts, *each.secondary_opts]}


def all_options(command):
    below = getattr(command, "commands", {}).values()
    return options_of(command).union(*map(all_options, below))


def parse(words):
    """What typer makes of `r2d2 …`, without running it; an unknown option or a missing argument is an error."""
    command, name, rest = find_verb(words)
    command.make_context(name, list(rest))


def check(words):
    """One command of a guide."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if "modeling_r2d2.cli" in words:  # accelerate launch … -m modeling_r2d2.cli VERB …
        parse(words[words.index("modeling_r2d2.cli") + 1 :])
    elif words[0] == "r2d2":
        parse(words[1:])
    elif words[0].startswith("--"):  # options alone, explained one by one
        known = all_options(typer.main.get_command(app))
        assert {word for word in words if word.startswith("--")} <= known
    elif words[0] == "accelerate":
        script = next(word for word in words if word.endswith(".py"))
        assert (ROOT / script).is_file(), script
    elif words[0] in ("python", "bash"):
        if words[1] == "-m":
            assert (ROOT / words[2].replace(".", "/")).is_dir(), words[2]
            return
        assert (ROOT / words[1]).is_file(), words[1]
        if words[1].startswith("examples/launch/"):  # they hand everything on to `r2d2 pretrain`
            parse(["pretrain", *words[2:]])
    else:
        assert words[0] in FOREIGN, f"what is {words[0]}?"


@pytest.mark.parametrize("page", PAGES)
def test_shell_lines(page):
    for words in shell_commands(page):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"{page}: {' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r2d2 serch photos.index 猫", "no verb 'serch'"),
        ("r2d2 data chek pairs.jsonl", "no verb 'chek'"),
        ("r2d2 convert r2d2.pth", "OUT_DIR|out_dir"),
        ("r2d2 push runs/mine owner/name --privat", "--privat"),
        ("r2d2 pretrain --data x --output y --steps many", "integer"),
        ("python examples/no_such.py", "no_such"),
        ("--lora 16 --no-such 1", "--no-such"),
        ("rd2d demo", "rd2d"),
    ],
)
def test_wrong_lines_are_found(line, message):
    with pytest.raises(Exception, match=message):  # of click, or an assertion of `check`
        check(line.split())


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences(page):
    for code in inline_commands(page):
        words = [word for word in code.split()[1:] if word != "…"]
        if not words or words[0].isupper():  # `r2d2 VERB --help`
            continue
        command, _, rest = find_verb(words[:1]) if words[0] != "data" else find_verb(words[:2])
        rest = [re.match(r"--[\w-]+", word)[0] for word in words if word.startswith("--")]
        assert set(rest) <= options_of(command) | {"--help"}, f"{page}: {code}"


@pytest.mark.parametrize("page", [*PAGES, "docs/reference/README.md"])
def test_links(page):
    here = ROOT / page
    for path, anchor in links(page):
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), f"{page}: {path} is not there"
        if anchor:
            assert anchor in anchors(target), f"{page}: {path} has no heading #{anchor}"


def test_every_guide_is_there_in_both_languages():
    names = {page for page in PAGES if page.startswith("docs/")}
    english = {name for name in names if not name.endswith(".zh.md")}
    assert {in_chinese(name) for name in english} == names - english


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_a_readme_is_typed_from_top_to_bottom(page):
    """`r2d2` comes after the environment was activated, and pictures after their folder was made."""
    blocks = code_blocks(text_of(page))
    lines = [(language, line) for language, code in blocks for line in code.splitlines()]
    first_verb = next(place for place, (kind, line) in enumerate(lines) if kind == "bash" and line.startswith("r2d2 "))
    assert any("source .venv/bin/activate" in line for _, line in lines[:first_verb])
    used = next(place for place, (kind, line) in enumerate(lines) if kind == "bash" and " photos " in line)
    assert any('Path("photos").mkdir' in line for _, line in lines[:used])
