"""Whatever a user gets wrong is one line on stderr that names it, and a status other than 0."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import typer
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors import SafetensorError

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.cli import EXAMPLES, app, errors, main
from modeling_r2d2.cli.commands import require_device
from modeling_r2d2.cli.terminal import one_line, quiet_libraries
from modeling_r2d2.inference.loading import one_line_errors
from modeling_r2d2.processing.files.images import ImageReadError
from tests.helpers import tiny_image, tiny_model, tiny_processor


def raising(error: BaseException):
    def command():
        raise error

    return command


def line_of(capsys, error: BaseException, with_traceback: bool = False) -> tuple[int, str]:
    status = errors.run(raising(error), lambda: with_traceback)
    out, err = capsys.readouterr()
    assert out == ""
    return status, err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("--top-k is 0"), 2, ["ValueError: --top-k is 0"]),
        (ImageReadError("a.png:\n  truncated\n"), 2, ["a.png: truncated"]),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b.csv"), 2, ["/a/b.csv", "No such file"]),
        (PermissionError(errno.EACCES, "Permission denied", b"/a/\xff"), 2, ["/a/", "Permission denied"]),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), 2, ["/a", "free some space"]),
        (FileExistsError(errno.EEXIST, "photos holds something else"), 2, ["FileExistsError: photos holds"]),
        (SafetensorError("Error while deserializing header"), 2, ["header"]),
        (StrictDataclassFieldValidationError("hidden_size", cause=TypeError("not an int")), 2, ["hidden_size"]),
        (MemoryError(), 2, ["out of memory"]),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, ["--batch-size"]),
        (RecursionError("maximum recursion depth exceeded"), 2, ["nested too deeply"]),
        (EOFError("Ran out of input"), 2, ["Ran out of input"]),
        (KeyError("weights"), 1, ["'weights' is missing", "R2D2_TRACEBACK=1"]),
        (TypeError("\x1b[2J[/red] is None"), 1, [r"\x1b[2J[/red] is None", "may be a defect"]),
        (typer.BadParameter("x is y"), 2, ["x is y"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_line(capsys, error, status, words):
    found, text = line_of(capsys, error)
    assert found == status
    assert text.startswith("r2d2: ")
    assert text.count("\n") == 1
    assert "\x1b" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("faiss", "retrieval"),
        ("pyarrow.parquet", "retrieval"),
        ("gradio", "app"),
        ("onnxruntime", "onnx"),
        ("peft", "peft"),
        ("sklearn.metrics", "train"),
        ("pymilvus", "milvus"),
        ("jieba", "wwm"),
        ("sentence_transformers", "sentence-transformers"),
    ],
)
def test_a_missing_extra_is_named_with_its_line(capsys, module, extra):
    status, text = line_of(capsys, ModuleNotFoundError(f"No module named '{module}'", name=module))
    assert status == 2
    assert text.endswith(f": pip install 'modeling-r2d2[{extra}]'\n")


def test_a_missing_module_of_nobodys(capsys):
    _, text = line_of(capsys, ModuleNotFoundError("No module named 'nonsense'", name="nonsense"))
    assert text == "r2d2: ModuleNotFoundError: No module named 'nonsense'\n"


def test_a_traceback_on_request(capsys):
    status, text = line_of(capsys, ValueError("wrong"), with_traceback=True)
    assert status == 2
    assert "Traceback (most recent call last)" in text
    assert text.rstrip().endswith("r2d2: ValueError: wrong")


def test_interrupted(capsys):
    status, text = line_of(capsys, KeyboardInterrupt())
    assert (status, text) == (130, "r2d2: interrupted\n")


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["r2d2", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search"], "Missing argument"),
        (["serch"], "No such command"),
        (["search", "x", "--topk", "3"], "--top-k"),
        (["search", "x", "y", "--top-k", "many"], "'--top-k'"),
        (["search", "/nowhere", "猫"], "/nowhere holds no index"),
        (["search", "x", "猫", "--device", "cuda:7"], "cuda:7"),
        (["match", "x.png", "猫", "--model", "m", "--device", "gpu"], "there is: cpu"),
        (["index", "photos", "--output", "o", "--device", "meta"], "computes nothing"),
        (["evaluate", "--data", "x", "--model", "m", "--device", "mps"], "mps"),
        (["match", "/nowhere/a.png", "猫", "--model", "/nowhere/model"], "/nowhere"),
        (["data", "check", "/nowhere/pairs.jsonl"], "/nowhere/pairs.jsonl"),
        (["calibrate", "/nowhere/model", "--data", "/nowhere/pairs.jsonl"], "/nowhere"),
        (["convert", "/nowhere/x.pth", "/nowhere/out"], "/nowhere/x.pth"),
        (["export", "/nowhere/model", "--output", "/nowhere/out"], "/nowhere/model"),
        (["card", "/nowhere/model"], "/nowhere/model"),
        (["push", "/nowhere/model", "a/b"], "/nowhere/model"),
        (
            ["finetune", "retrieval", "--model", "/nowhere/m", "--data", "/nowhere/d", "--output", "/nowhere/o"],
            "nowhere",
        ),
        (["pretrain", "--data", "/nowhere/pairs.jsonl", "--output", "/nowhere/o"], "/nowhere"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_mistakes_at_every_verb(arguments, words, monkeypatch, capsys):
    status, out, err = call(monkeypatch, capsys, *arguments)
    assert status == 2, err
    assert out == ""
    assert words in err
    lines = [line for line in err.splitlines() if line.startswith("r2d2: ")]
    assert len(lines) == 1
    assert "Traceback" not in err


def test_version_and_help(monkeypatch, capsys):
    from modeling_r2d2 import __version__

    assert call(monkeypatch, capsys, "--version") == (0, f"r2d2 {__version__}\n", "")
    status, out, _ = call(monkeypatch, capsys, "--help")
    assert status == 0
    head = " ".join(out.split("─ Options")[0].split())
    assert head.index("r2d2 index") < head.index("r2d2 search") < head.index("r2d2 app")
    status, out, err = call(monkeypatch, capsys)
    assert status != 0
    assert "─ Train" in out + err


def verbs(command, name: str = "") -> dict:
    if not hasattr(command, "commands"):
        return {name: command}
    found = {}
    for verb, each in command.commands.items():
        found |= verbs(each, f"{name} {verb}".strip())
    return found


def parse(line: str) -> None:
    """As the command would read it; whatever it does not know raises."""
    program, *arguments = line.split()
    assert program == "r2d2"
    command = typer.main.get_command(app)
    name = "r2d2"
    while hasattr(command, "commands"):
        name, arguments = arguments[0], arguments[1:]
        command = command.commands[name]
    command.make_context(name, arguments)


def test_every_verb_has_an_example_that_it_can_read(monkeypatch, capsys):
    commands = verbs(typer.main.get_command(app))
    assert set(EXAMPLES) == set(commands)
    for name, example in EXAMPLES.items():
        assert example.startswith(f"r2d2 {name} ")
        parse(example)
        assert example in " ".join((commands[name].epilog or "").split())


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_is_one_line(tmp_path):
    """While a verb is at work: here it reads a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "prompts.txt")
    command = [sys.executable, "-m", "modeling_r2d2.cli", "evaluate", "--task", "classification", "--data", "x"]
    process = subprocess.Popen(
        [*command, "--model", "y", "--prompts", str(tmp_path / "prompts.txt")],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    writer = os.open(tmp_path / "prompts.txt", os.O_WRONLY)  # returns when the verb has opened it
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    os.close(writer)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "r2d2: interrupted"
    assert "Traceback" not in err.decode()


def test_device_is_taken_where_it_works(monkeypatch):
    require_device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="there is: cpu, cuda:0, cuda:1"):
        require_device("nonsense")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, four pairs, their index, and broken files of each kind."""
    pytest.importorskip("faiss")
    root = tmp_path_factory.mktemp("errors")
    torch.manual_seed(0)
    tiny_model().save_pretrained(root / "model")
    tiny_processor().save_pretrained(root / "model")
    lines = []
    for number, text in enumerate("猫狗马鱼"):
        tiny_image(number).save(root / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}))
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    R2D2Retriever.build(root / "pairs.jsonl", root / "model", root / "index")
    (root / "broken.json").write_text('{"a": ')
    (root / "deep.json").write_text("[" * 100_000)
    for name in ("torn", "manifested"):
        shutil.copytree(root / "model", root / name)
    weights = root / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    (root / "manifested" / "manifest.json").write_text('{"name": "somebody\'s"}')
    return root


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["match", "{}/0.png", "猫", "--model", "{}/index"], "it has no config.json; it is an index: name the model"),
        (["evaluate", "--data", "{}/pairs.jsonl", "--model", "{}/index"], "it is an index"),
        (["search", "{}/model", "猫"], "it is a model: make an index with `r2d2 index PICTURES --model"),
        (["card", "{}/torn"], "model.safetensors is damaged, or was cut short"),
        (["card", "{}/model", "--results", "{}/broken.json"], "broken.json:1 is not JSON"),
        (["card", "{}/model", "--results", "{}/deep.json"], "deep.json is not JSON"),
        (["card", "{}/model", "--speed", "{}/broken.json"], "broken.json:1 is not JSON"),
        (["card", "{}/model", "--speed", "{}/model/config.json"], "config.json holds no speed"),
        (["search", "{}/index", "猫", "--min-match-probability", "nan"], "a probability, from 0 to 1"),
        (["search", "{}/index", "猫", "--output", "x.xlsx"], "x.xlsx: it ends in none of .json"),
        (["search", "{}/index", "猫", "--format", "sheet", "--output", "x.jpg"], "x.jpg: it ends in none of .json"),
        (["data", "check", "{}/pairs.jsonl", "--max-error-rate", "nan"], "max_error_rate is nan"),
        (["data", "check", "{}/pairs.jsonl", "--label", "zzz"], "records: {}/pairs.jsonl:1: no column 'zzz'"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_wrong_files_are_named(place, arguments, words, monkeypatch, capsys):
    arguments = [each.replace("{}", str(place)) for each in arguments]
    status, _, err = call(monkeypatch, capsys, *arguments)
    line = err.splitlines()[-1]
    assert status == 2
    assert line.startswith("r2d2: ")
    assert words.replace("{}", str(place)) in line


def test_a_manifest_beside_a_model_is_no_export(place, monkeypatch, capsys):
    command = ("match", place / "0.png", "猫", "--model", place / "manifested", "--json")
    status, out, _ = call(monkeypatch, capsys, *command)
    assert status == 0
    assert json.loads(out)[0]["text"] == "猫"


@pytest.mark.parametrize("torn", ['{"met', "{}", "[]", ""])
def test_a_torn_result_is_computed_again(place, tmp_path, monkeypatch, capsys, torn):
    command = ("evaluate", "--data", place / "pairs.jsonl", "--model", place / "model", "--output", tmp_path)
    status, first, _ = call(monkeypatch, capsys, *command)
    assert status == 0
    (kept,) = (tmp_path / "cache").glob("*.json")
    whole = json.loads(kept.read_text("utf-8"))
    kept.write_text(torn)
    status, again, err = call(monkeypatch, capsys, *command)
    assert (status, again) == (0, first)
    assert f"{kept} is torn: it is computed again" in err
    assert json.loads(kept.read_text("utf-8"))["metrics"] == whole["metrics"]


def test_a_mistyped_folder_is_named_before_the_hub_is_asked(monkeypatch, caplog):
    """Who waits for the Hub knows why; its retries are not shown."""
    monkeypatch.setattr("modeling_r2d2.inference.loading.hub.HF_HUB_OFFLINE", False)
    quiet_libraries()

    @one_line_errors("mistyped", object)
    def ask():
        assert [record.getMessage() for record in caplog.records] == [
            "no such folder here: mistyped; asking the Hub for a model of this name"
        ]
        assert not logging.getLogger("huggingface_hub.utils").isEnabledFor(logging.WARNING)
        raise OSError("cannot be reached")

    with pytest.raises(FileNotFoundError, match="no such folder: mistyped"):
        ask()


def test_items_of_a_list_are_parted():
    assert one_line("x is refused:\n- no card\n- no weights\n") == "x is refused: no card; no weights"
    assert one_line("a.png: no caption\nb.png: no caption") == "a.png: no caption; b.png: no caption"
