"""What reaches a terminal: no stranger's control characters, no markup, no path that is cut or wrapped."""

import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.cli.terminal import Terminal, one_line
from modeling_r2d2.processing.files.printable import printable
from modeling_r2d2.search import SearchHit, SearchResult, to_csv
from tests.helpers import tiny_image, tiny_model, tiny_processor

pytest.importorskip("faiss")

#: A colour, a link of OSC 8, a title, a bell, a direction turned round, a line break, a lone surrogate, rich's markup.
HOSTILE = "\x1b[31m红\x1b]8;;http://x\x07\x1b]0;t\x07\u202egpj.\u2028\x9b2J\r\n[red]a[/b]"
runner = CliRunner()


def steering(text: str) -> set[str]:
    return {character for character in text if not character.isprintable()} - {"\n", "\r"}  # \r: of a library's bar


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("一只猫　👨‍👩‍👧 é", "一只猫　👨‍👩‍👧 é"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\u202egpj\u2066\ufeff\u200b", r"\u202egpj\u2066\ufeff\u200b"),
        ("\udc80\u2029\x9b", r"\udc80\u2029\x9b"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable("a\nb", lines=True) == "a\nb"


def test_terminal_prints_what_it_is_given():
    file = io.StringIO()
    terminal = Terminal(file=file)
    path = "/照片/" + "很长的名字" * 40 + ".jpg"
    terminal.print(f"written: {path} [red]a[/b] :smile: 1,234")
    table = terminal.table("rank", "picture", title=HOSTILE)
    table.add_row("1", path)
    table.add_row(HOSTILE, "[red]a[/b]")
    terminal.width = 20  # of a narrow terminal
    terminal.print_table(table)
    lines = file.getvalue().splitlines()
    assert lines[0] == f"written: {path} [red]a[/b] :smile: 1,234"
    assert any(line.rstrip().endswith(path) for line in lines[1:])
    assert "…" not in file.getvalue()
    assert steering(file.getvalue()) == set()
    assert any(line.rstrip().endswith(" [red]a[/b]") for line in lines)
    assert one_line("a:\n\n  b\n c ") == "a: b; c"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and pictures whose names and captions are hostile."""
    root = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    folder = root / "photos"
    folder.mkdir()
    names = ["\x1b[31m红.png", "\u202egpj.png", "[red]a[b].png", "x" * 150 + ".png", "a\nb.png", "<img src=x>.png"]
    lines = []
    for seed, name in enumerate(names):
        tiny_image(seed).save(folder / name)
        lines.append(json.dumps({"image": name, "text": f"{HOSTILE} {seed}" if seed else "=1+1"}))
    lines.append(json.dumps({"image": "\x1b[2Jnowhere[/red].png", "text": "猫"}))
    (folder / "broken\x1b[2J[x].png").write_bytes(b"GIF89a")
    lines.append(json.dumps({"image": "broken\x1b[2J[x].png", "text": "猫"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def outputs(*arguments) -> tuple[str, str]:
    result = runner.invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    return result.stdout, result.stderr


def test_hostile_names_in_every_table_and_line(place, tmp_path):
    pairs, model, index = place / "photos" / "pairs.jsonl", place / "model", tmp_path / "index"
    commands = [
        ("index", pairs, "--model", model, "--output", index),
        ("search", index, "猫\x1b[2J", "--top-k", "9"),
        ("search", index, "猫", "--find", "texts"),
        ("match", place / "photos" / "[red]a[b].png", HOSTILE, "[/x]", "--model", model),
        ("data", "check", pairs),
    ]
    for command in commands:
        for text in outputs(*command):
            assert steering(text) == set(), command
    stdout, _ = outputs(*commands[1])
    assert "x" * 150 + ".png" in stdout
    assert "[red]a[b].png" in stdout
    assert r"\x1b[31m红.png" in stdout
    outputs("search", index, "猫", "--output", tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text("utf-8")
    assert "<img src=x>" not in page
    assert "&lt;img src=x&gt;" in page


def test_formulas_in_csv_are_texts():
    hit = SearchHit(1, "=cmd|' /C calc'!A0.jpg", "-1.jpg", -0.5, None, -0.25, text="@SUM(A1)")
    (row,) = csv.DictReader(io.StringIO(to_csv([SearchResult("+1", [hit])])))
    assert (row["query"], row["id"], row["path"], row["text"]) == (
        "'+1",
        "'=cmd|' /C calc'!A0.jpg",
        "'-1.jpg",
        "'@SUM(A1)",
    )
    assert (float(row["score"]), float(row["cosine"])) == (-0.5, -0.25)  # numbers stay numbers


def test_the_format_follows_the_file(place, tmp_path):
    outputs("index", place / "photos", "--model", place / "model", "--output", tmp_path / "index")
    search = ("search", tmp_path / "index", "猫")
    for name in ("a.json", "a.csv", "a.png", "a.txt"):
        stdout, stderr = outputs(*search, "--output", tmp_path / name)
        assert stdout == ""
        assert str(tmp_path / name) in stderr
    found = json.loads((tmp_path / "a.json").read_text("utf-8"))
    data = (tmp_path / "a.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfquery,rank,id")  # Excel knows UTF-8 by its mark
    assert data.count(b"\r\n") >= 1 + len(found[0]["hits"])
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert [row["path"] for row in rows] == [hit["path"] for hit in found[0]["hits"]]
    assert (tmp_path / "a.html").is_file()
    assert "x" * 150 + ".png" in (tmp_path / "a.txt").read_text("utf-8")
    stdout, _ = outputs(*search, "--format", "json")
    assert json.loads(stdout) == found
    result = runner.invoke(app, [str(each) for each in (*search, "--format", "csv", "--output", tmp_path / "b.json")])
    assert "contradict" in str(result.exception)
    assert not (tmp_path / "b.json").exists()


def test_stdout_is_the_answer_alone(place, tmp_path):
    """As a program reads it: no bars, no warnings; and a reader that leaves early is no error."""
    command = [sys.executable, "-m", "modeling_r2d2.cli"]
    outputs("index", place / "photos", "--model", place / "model", "--output", tmp_path / "index")
    search = [*command, "search", str(tmp_path / "index"), "猫"]
    done = subprocess.run([*search, "--format", "json"], capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout)[0]["query"] == "猫"
    assert "Loading" not in done.stderr.decode()
    done = subprocess.run([*search, "--format", "csv", "--top-k", "9"], capture_output=True, check=True, timeout=120)
    paths = [row["path"] for row in csv.DictReader(io.StringIO(done.stdout.decode(), newline=""))]
    assert any("\x1b[31m" in path for path in paths)
    assert all(Path(path).is_file() for path in paths)  # a program gets names that open
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    shell = " ".join(f"'{part}'" for part in [*search, *["马"] * 200]) + " --format csv | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=True, timeout=120, env=environment)
    assert done.stdout.decode().startswith("query,rank")
    assert done.stderr.decode() == ""


def test_messages_of_libraries_are_escaped(capsys):
    from modeling_r2d2.cli.terminal import _Formatter

    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "bad file \x1b[2J\u202e%s", ("a",), None)
    assert _Formatter("%(message)s").format(record) == r"bad file \x1b[2J\u202ea"


def test_width_of_chinese_names():
    """A wide name makes a wide table, counted in cells."""
    file = io.StringIO()
    terminal = Terminal(file=file)
    table = terminal.table("picture")
    table.add_row("猫" * 100)
    terminal.print_table(table)
    assert max(cell_len(line.rstrip()) for line in file.getvalue().splitlines()) >= 200
