"""What is installed: one top-level name, every sub-package, the data files, importable from anywhere."""

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP_CFG = configparser.ConfigParser()
SETUP_CFG.read(ROOT / "setup.cfg", encoding="utf-8")


def _lines(section: str, option: str) -> list[str]:
    return [line.strip() for line in SETUP_CFG[section][option].splitlines() if line.strip()]


def _package_dirs() -> dict[str, str]:
    return dict(map(str.strip, line.split("=", 1)) for line in _lines("options", "package_dir"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The project's wheel, built from a copy so that the checkout gets no build folder."""
    import shutil

    source = tmp_path_factory.mktemp("source")
    for name in [*_package_dirs().values(), "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run = subprocess.run([*command, "-w", out, source], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = out.glob("*.whl")
    return path


def test_every_package_folder_is_listed_in_setup_cfg():
    found = set()
    for package, folder in _package_dirs().items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((package, *init.parent.relative_to(ROOT / folder).parts)))
    assert found == set(_lines("options", "packages"))


def test_wheel_has_one_top_level_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"modeling_r2d2"}


def test_wheel_holds_every_source_and_data_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = []
    for package, folder in _package_dirs().items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() or "__pycache__" in path.parts or path.suffix in {".pyc"}:
                continue
            name = "/".join((*package.split("."), *path.relative_to(ROOT / folder).parts))
            if name not in names:
                missing.append(name)
    assert not missing, f"not in the wheel (a pattern is missing from [options.package_data]): {missing}"


def test_installed_wheel_works_away_from_the_repository(wheel, tmp_path):
    """A user's own folder named `processing` does not shadow ours, and ours leaves no such name behind."""
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", target]
    run = subprocess.run([*command, wheel], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    users = tmp_path / "users_project"
    (users / "processing").mkdir(parents=True)
    (users / "processing" / "__init__.py").write_text("OWNER = 'the user'\n")
    code = f"""
import sys
sys.path.insert(1, {str(target)!r})
import processing
assert processing.OWNER == "the user"
import modeling_r2d2, modeling_r2d2.processing, modeling_r2d2.hub_cards
for module in (modeling_r2d2, modeling_r2d2.processing, modeling_r2d2.hub_cards):
    assert module.__file__.startswith({str(target)!r}), module.__file__
from modeling_r2d2 import R2D2Config, R2D2Model, R2D2Processor
from modeling_r2d2.cli import main
"""
    # -P would drop the user's folder as well; PYTHONPATH stays empty so that only the wheel can be meant
    run = subprocess.run([sys.executable, "-c", code], cwd=users, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("where", ["repository", "elsewhere"])
def test_editable_install_imports_from_anywhere(where, tmp_path):
    code = (
        "import modeling_r2d2, modeling_r2d2.processing as p, modeling_r2d2.hub_cards as h; "
        "print(modeling_r2d2.__file__, p.__file__, h.__file__, sep='\\n')"
    )
    cwd = ROOT if where == "repository" else tmp_path
    run = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = [ROOT / "modeling_r2d2", ROOT / "processing", ROOT / "hub_cards"]
    assert [Path(line).parent for line in run.stdout.split()] == expected


def test_version_is_stated_once_and_agrees():
    import modeling_r2d2

    version = SETUP_CFG["metadata"]["version"]
    assert importlib.metadata.version("modeling-r2d2") == version == modeling_r2d2.__version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_constraints_pin_every_requirement():
    """`pip install -c constraints.txt` gives tested versions only: no direct requirement is left open."""
    import re

    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    wanted = set(_lines("options", "install_requires"))
    for extra in SETUP_CFG["options.extras_require"]:
        wanted.update(_lines("options.extras_require", extra))
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ]", item)[0]).lower() for item in wanted}
    assert names - {"modeling-r2d2"} - set(pins) == set()


def test_what_the_package_imports_is_declared():
    """httpx came with huggingface_hub, until it did not: an installed package then failed at its first pipeline."""
    needed = SETUP_CFG["options"]["install_requires"].splitlines()
    for lines in SETUP_CFG["options.extras_require"].values():
        needed += lines.splitlines()
    # what huggingface_hub always brings may be used
    needed += [each for each in importlib.metadata.requires("huggingface_hub") or [] if "extra ==" not in each]
    needed.append("starlette")  # of gradio, in the page
    declared = {_plain(re.split(r"[\s<>=!~;\[]", line.strip())[0]) for line in needed if line.strip()}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for folder in _package_dirs().values():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                for name in {each.partition(".")[0] for each in names} - sys.stdlib_module_names:
                    if declared.isdisjoint(map(_plain, distributions.get(name, [name]))):
                        undeclared.add(f"{path.relative_to(ROOT)}: {name}")
    assert not undeclared


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
