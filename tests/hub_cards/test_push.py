"""`r2d2 push` and `r2d2 card`: what goes, what stays, what is refused; against a server with the Hub's protocol."""

import bz2
import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.hub_cards import PushRefusedError, model_card, plan_push, push_folder, write_card
from modeling_r2d2.hub_cards.checking import code_blocks
from modeling_r2d2.hub_cards.inspection import problems_of
from tests.helpers import tiny_image
from tests.hub_cards.fresh import run_blocks
from tests.hub_cards.hub_server import TOKEN, Hub


@pytest.fixture
def folder(folders, tmp_path, result_of):
    """A pre-training run's folder with its card and results."""
    folder = tmp_path / "mine"
    shutil.copytree(folders["pretrained"], folder)
    results = [result_of(folder)]
    write_card(model_card(folder, results=results, repo="me/tiny"), folder, results)
    return folder


def test_plan(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]")
    (folder / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (folder / "notes.txt").write_text("a note")
    plan = plan_push(folder, "me/tiny", exclude=["notes*"])
    assert plan.problems == []
    assert plan.warnings == []
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_r2d2.py",
        "evaluation/retrieval-muge.json",
    } <= set(plan.files)
    assert plan.files["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert plan.total == sum(plan.files.values())
    assert {name: why for name, why in plan.left_out.items() if not name.startswith("checkpoint")} == {
        ".env": "hidden",
        ".git/config": "hidden",
        ".r2d2.json": "hidden",
        "notes.txt": "--exclude",
        "training_args.bin": "pickle of the training arguments, which the card states",
    }
    assert plan.left_out["checkpoint-40/optimizer.pt"] == "training checkpoint"
    everything = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(plan.files) | set(plan.left_out) == everything  # nothing is passed over in silence


def put(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


SECRETS = {
    "hf": f"token = '{TOKEN}'",
    "github": "ghp_" + "A1" * 18,
    "aws": "AKIA" + "ABCDEFGH12345678",
    "google": "AIza" + "x" * 35,
    "api": "sk-" + "a1" * 20,
    "slack": "xoxb-1234567890-abc",
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "address": "https://me:secret12@example.org/x",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_refused_and_not_printed(kind, folder):
    put(folder, "train.log.txt", f"first\nsecond {SECRETS[kind]}\n")
    plan = plan_push(folder)
    assert len(plan.problems) == 1
    assert plan.problems[0].startswith("train.log.txt:2: looks like a")
    assert SECRETS[kind] not in plan.problems[0]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("pytorch_model.bin", b"x", "pytorch_model.bin: a pickle"),
        ("weights.safetensors.old", pickle.dumps({"a": 1}), "a pickle"),
        ("innocent.dat", pickle.dumps([1], protocol=2), "a pickle"),
        ("optimizer.pt", b"x", "training checkpoint"),
        ("server.pem", "x", "file of keys"),
        ("my_credentials.json", "{}", "file of keys"),
        ("README.md", "# no header", "README.md: there is no header"),
        ("config.json", '{"auto_map": {}}', "names no code"),
        ("config.json", '{"auto_map": {"AutoModel": "gone.Model"}}', "gone.py is not there"),
    ],
)
def test_what_is_refused(name, content, problem, folder):
    put(folder, name, content)
    problems = plan_push(folder).problems
    assert any(problem in each for each in problems), problems
    with pytest.raises(PushRefusedError, match="is not pushed"):
        push_folder(folder, "me/tiny", endpoint="http://127.0.0.1:9")  # refused before anything is asked


def test_torch_archives_are_found_by_content(folder):
    shutil.copy(folder / "training_args.bin", folder / "notes.md")
    assert any(each.startswith("notes.md, in ") and "a pickle" in each for each in plan_push(folder).problems)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("README.md", "no card"),
        ("model.safetensors", "no weights"),
        ("config.json", "no config.json"),
        ("losses_r2d2.py", "losses_r2d2.py is not there, which"),
    ],
)
def test_what_is_missing(name, problem, folder):
    (folder / name).unlink()
    assert any(problem in each for each in plan_push(folder).problems)


def test_links_to_outside_are_refused(folder, tmp_path):
    put(tmp_path, "outside.txt", "x")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "linked").symlink_to(tmp_path)
    problems = plan_push(folder).problems
    assert [each.split(":")[0] for each in problems] == ["link.txt", "linked"]


def test_warnings(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    put(folder, "adapter.json", '{\n"base": "/home/somebody/models/base"\n}')
    assert plan_push(folder, "me/other").warnings == [
        "adapter.json:2: names a path of this machine",
        f"README.md: its code loads 'me/tiny', not 'me/other': `r2d2 card {folder} --repo me/other --overwrite`",
    ]


def packed_zip(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", content)
    return out.getvalue()


def packed_tar(content: bytes, mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        info = tarfile.TarInfo("inner.txt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def safetensors_bytes(metadata: dict[str, str]) -> bytes:
    return safetensors.numpy.save({"a": numpy.zeros(2, numpy.float32)}, metadata)


DISGUISES = {
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big end first": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "behind zero bytes": lambda text: bytes(9000) + text.encode(),
    "beyond the first megabytes": lambda text: "字\n".encode() * 2**20 + text.encode(),
    "across two pieces": lambda text: b"." * (2**20 - 12) + b" " + text.encode(),
    "JSON's escapes": lambda text: (
        json.dumps({"a": "x"}).replace("x", "".join(f"\\u{ord(c):04x}" for c in text)).encode()
    ),
    "YAML's escapes": lambda text: ('a: "' + "".join(f"\\x{ord(c):02x}" for c in text) + '"').encode(),
    "notebook": lambda text: json.dumps({"cells": [{"source": [f"login('{text}')\n"]}]}).encode(),
    "zip": lambda text: packed_zip(text.encode()),
    "zip within a zip": lambda text: packed_zip(packed_zip(text.encode())),
    "tar": lambda text: packed_tar(text.encode()),
    "tar.gz": lambda text: packed_tar(text.encode(), "w:gz"),
    "tar.xz within a zip": lambda text: packed_zip(packed_tar(text.encode(), "w:xz")),
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "zlib": lambda text: zlib.compress(text.encode()),
    "after the pixels of a picture": lambda text: b"\x89PNG\r\n" + bytes(range(256)) * 9000 + text.encode(),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_secrets_in_disguise(disguise, tmp_path):
    name = "run.ipynb"
    for secret in (TOKEN, "https://me:pass1word@example.com"):
        (tmp_path / name).write_bytes(DISGUISES[disguise](secret))
        problems = problems_of(tmp_path / name, name)
        assert any("looks like a" in problem for problem in problems), problems
        assert secret not in "".join(problems)


def test_secrets_in_metadata_names_and_the_card(folder):
    """Of safetensors, files, members of archives; the front matter."""
    secret = TOKEN
    (folder / "extra.safetensors").write_bytes(safetensors_bytes({"token": secret}))
    put(folder, f"{secret}.txt", "x")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as held:
        held.writestr(f"{secret}.txt", "x")
    (folder / "pack.dat").write_bytes(archive.getvalue())
    card = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(card.replace("---\n", f"---\ntoken: {secret}\n", 1), encoding="utf-8")
    problems = plan_push(folder).problems
    for expected in ("extra.safetensors:", "a file name looks", "pack.dat: the name of a member", "README.md:2:"):
        assert any(problem.startswith(expected) for problem in problems), (expected, problems)
    assert secret not in "".join(problems)


class Call:
    def __reduce__(self):
        return print, ("ran",)


def pickled_npy() -> bytes:
    out = io.BytesIO()
    numpy.save(out, numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


def pickled_npz() -> bytes:
    out = io.BytesIO()
    numpy.savez(out, a=numpy.array([{"a": 1}], dtype=object))
    return out.getvalue()


PICKLES = {
    **{f"protocol {number}": pickle.dumps(Call(), protocol=number) for number in range(6)},
    "joblib": zlib.compress(pickle.dumps(Call())),
    "gzip": gzip.compress(pickle.dumps(Call(), protocol=0)),
    "objects of numpy": pickled_npy(),
    "objects of numpy, zipped": pickled_npz(),
    "in a tar": packed_tar(pickle.dumps(Call())),
    "in a zip": packed_zip(pickle.dumps(Call(), protocol=0)),
}


@pytest.mark.parametrize("name", ["notes.md", "weights.safetensors", "picture.png", "vectors.npy", "LICENSE"])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_in_disguise(kind, name, tmp_path):
    (tmp_path / name).write_bytes(PICKLES[kind])
    problems = problems_of(tmp_path / name, name)
    is_safetensors = name.endswith("safetensors") and not kind.startswith(("protocol", "objects of numpy"))
    wanted = "no whole safetensors" if is_safetensors else "a pickle"
    assert any(wanted in problem for problem in problems), problems


def test_what_is_no_secret_and_no_pickle(tmp_path):
    """Ordinary files of a model folder, and texts whose first letters are a pickle's opcodes."""
    numpy.save(tmp_path / "a.npy", numpy.zeros(3))
    numpy.savez(tmp_path / "b.npz", a=numpy.zeros(3))
    (tmp_path / "c.safetensors").write_bytes(safetensors_bytes({"format": "pt"}))
    tiny_image().save(tmp_path / "d.png")
    (tmp_path / "e.py").write_text("import json\nimport re\n.5\ntoken = tokenizer_with_a_long_name\n")
    (tmp_path / "f.txt").write_text("N.\n(see below)\ncos\n")
    (tmp_path / "g.jsonl").write_text(
        "\n".join(json.dumps({"text": "一只猫", "url": "https://a.b/c"}) for _ in range(9))
    )
    (tmp_path / "h.dat").write_bytes(numpy.random.default_rng(0).bytes(2**22))
    for path in tmp_path.iterdir():
        assert problems_of(path, path.name) == []


def test_damaged_locked_and_endless_files(tmp_path, monkeypatch):
    """What cannot be searched is refused."""
    monkeypatch.setattr("modeling_r2d2.hub_cards.inspection._MOST_UNPACKED", 2**20)
    whole = packed_zip(b"x" * 3000)
    weights = safetensors_bytes({})
    cases = {
        "bomb.gz": (gzip.compress(bytes(2**21)), "unpacks to more"),
        "bomb.zip": (packed_zip(bytes(2**21)), "unpacks to more"),
        "cut.zip": (whole[:20] + b"\xff" * 20 + whole[40:], "damaged or locked"),
        "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z archive"),
        "cut.safetensors": (weights[:-1], "no whole safetensors"),
        "more.safetensors": (weights + b"more", "no whole safetensors"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert any(reason in problem for problem in problems_of(tmp_path / name, name)), name
    os.mkfifo(tmp_path / "pipe")
    assert "neither a file" in problems_of(tmp_path / "pipe", "pipe")[0]


def test_links_and_hidden_folders(folder, tmp_path):
    """A link to nothing; what lies in .git stays behind wherever it is."""
    (folder / "lost").symlink_to(folder / "nowhere")
    (folder / "sub" / ".git").mkdir(parents=True)
    put(folder, "sub/.git/config", TOKEN)
    plan = plan_push(folder)
    assert plan.problems == [
        "lost: a link to outside the folder, to a folder or to nothing: copy what it stands for, or delete it"
    ]
    assert plan.left_out["sub/.git/config"] == "hidden"


@pytest.mark.parametrize("repo", ["tiny", "me/ti ny", "a/b/c", "me/ti--ny"])
def test_repository_names(repo, folder):
    with pytest.raises(ValueError, match="is no repository name|names no owner"):
        push_folder(folder, repo)


def test_dry_run_lists_every_file_and_asks_nothing(folder):
    with Hub() as hub:
        arguments = ["push", str(folder), "me/tiny", "--dry-run"]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "HF_ENDPOINT": hub.address})
    assert result.exit_code == 0, result.output
    plan = plan_push(folder)
    for name, size in plan.files.items():
        assert any(name in line and f"{size:,}" in line for line in result.output.splitlines()), name
    assert f"{len(plan.files)} files" in result.output
    assert "left out: training_args.bin (pickle" in result.output
    assert "nothing was sent" in result.output
    assert hub.log == []


def test_push_then_the_cards_code_by_name(folder, tmp_path):
    """The whole way: pushed by the command to HF_ENDPOINT, and the published card's code loads the model from there by
    its name."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_HUB_DISABLE_XET": "1",  # the older LFS upload, which the test's server speaks
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
        "COLUMNS": "200",
    }
    line = [
        sys.executable,
        "-m",
        "modeling_r2d2.cli",
        "push",
        str(folder),
        "me/tiny",
        "--private",
        "--message",
        "第一版",
    ]
    with Hub() as hub:
        environment["HF_ENDPOINT"] = hub.address
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert f"pushed: {hub.address}/me/tiny/commit/" in done.stdout
        assert hub.errors == []
        expected = {name: (folder / name).read_bytes() for name in plan_push(folder).files}
        assert hub.repos["me/tiny"] == expected
        assert hub.private == {"me/tiny": True}
        assert hub.commits == [{"repo": "me/tiny", "summary": "第一版", "pr": False}]
        assert hub.lfs == {"model.safetensors"}
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        tiny_image().save(elsewhere / "picture.png")
        card = hub.repos["me/tiny"]["README.md"].decode()
        blocks = [(f"block-{place}", code) for place, (_, code) in enumerate(code_blocks(card))]
        assert len(blocks) == 3
        options = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        printed = run_blocks(blocks, elsewhere, tmp_path / "home", **options)
        assert "tensor" in printed["block-1"]
        assert "GET /me/tiny/resolve/main/README.md" not in hub.log
        assert any(line.startswith("GET") and line.endswith("/model.safetensors") for line in hub.log)


def test_push_again_and_as_pull_request(folder, online):
    for _ in range(2):  # the second time the repository is there already
        commit = push_folder(folder, "me/tiny", endpoint=online.address, token=TOKEN)
    assert commit.pr_url is None
    commit = push_folder(folder, "me/tiny", endpoint=online.address, token=TOKEN, create_pr=True)
    assert commit.pr_url == f"{online.address}/me/tiny/discussions/1"
    assert [each["pr"] for each in online.commits] == [False, False, True]
    assert {each["summary"] for each in online.commits} == {"Upload mine"}
    assert online.private == {"me/tiny": False}


def test_a_wrong_token(folder, online):
    with pytest.raises(OSError, match="401"):  # which the command prints as one line
        push_folder(folder, "me/tiny", endpoint=online.address, token="hf_wrong")
    assert online.repos == {}


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})


def test_card_command(folders, tmp_path, result_of):
    folder = tmp_path / "mine"
    shutil.copytree(folders["finetuned"], folder)
    results = tmp_path / "results.json"
    results.write_text(json.dumps([result_of(folder).to_dict()]), encoding="utf-8")
    speed = tmp_path / "speed.json"
    options = ["--results", results, "--data", "Zero", "--license", "mit", "--base-model", "owner/base"]
    done = run("card", folder, "--language", "zh", *options, "--repo", "me/tiny", "--limit", "只见过猫。")
    assert done.exit_code == 0, (done.output, done.exception)
    text = (folder / "README.md").read_text(encoding="utf-8")
    for expected in (
        "license: mit",
        "research use only",
        "只见过猫。",
        "12.35",
        "速度：未知",
        "owner/base",
        '"me/tiny"',
    ):
        assert expected in text, expected
    assert json.loads((folder / "evaluation/retrieval-muge.json").read_text(encoding="utf-8"))[0]["data"] == "MUGE"
    assert plan_push(folder, "me/tiny").problems == []
    assert "overwrite" in str(run("card", folder).exception)
    done = run("card", folder, "--overwrite", "--measure-speed", "--speed-output", speed)
    assert done.exit_code == 0, (done.output, done.exception)
    rate = json.loads(speed.read_text())["images_per_second"]
    assert f"| pictures | {rate} |" in (folder / "README.md").read_text(encoding="utf-8")
    elsewhere = tmp_path / "card.md"
    done = run("card", folder, "--speed", speed, "--output", elsewhere)
    assert done.exit_code == 0
    assert str(rate) in elsewhere.read_text(encoding="utf-8")
    assert "not both" in str(run("card", folder, "--overwrite", "--measure-speed", "--speed", speed).exception)


def test_card_command_on_data(tmp_path):
    for place in range(2):
        tiny_image(place).save(tmp_path / f"{place}.png")
    lines = "".join(f'{{"image": "{place}.png", "text": "猫"}}\n' for place in range(2))
    (tmp_path / "cats.jsonl").write_text(lines, encoding="utf-8")
    done = run("data", "card", tmp_path / "cats.jsonl", "--name", "两只猫", "--license", "cc0-1.0", "--language", "zh")
    assert done.exit_code == 0, (done.output, done.exception)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for expected in ("pretty_name: 两只猫", "license: cc0-1.0", 'load_pairs("cats.jsonl")', "| 图片的许可 | 未知 |"):
        assert expected in text, expected
    assert "there already" in str(run("data", "card", tmp_path / "cats.jsonl").exception)


def test_a_card_does_not_replace_its_data(tmp_path):
    tiny_image(0).save(tmp_path / "0.png")
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"image": "0.png", "text": "猫"}\n', encoding="utf-8")
    before = data.read_bytes()
    assert "name another file" in str(run("data", "card", data, "--output", data, "--overwrite").exception)
    assert data.read_bytes() == before
