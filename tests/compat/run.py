"""`make compat`: the tests on the oldest and on the newest supported versions.

The oldest are the lower bounds in setup.cfg, on the oldest supported Python; the newest those of constraints.txt,
on the newest Python found here. Each has an environment of its own under `.cache/compat`, made once and again when
its versions change. On Linux PyPI's torch is built for CUDA, so the first run fetches several GB; point pip at
PyTorch's index of CPU builds to save that.

    make compat                       both
    make compat ARGS=oldest           one
    make compat ARGS="newest --python /path/to/python3.13"
"""

import argparse
import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CACHE = ROOT / ".cache" / "compat"
PROJECT = f"{ROOT}[all]"
#: Left out: what is about this checkout and its pinned environment, not about versions.
IGNORED = ["tests/peer", "tests/test_packaging.py", "tests/test_benchmarks.py"]


def lower_bounds() -> list[str]:
    """`name==version` for every requirement of setup.cfg, extras too, that states the oldest version it supports."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    for extra, requirements in config["options.extras_require"].items():
        lines += [] if extra == "dev" else requirements.splitlines()
    bounds = (re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", line.strip()) for line in lines)
    return list(dict.fromkeys(f"{bound[1]}=={bound[2]}" for bound in bounds if bound))


def python_version(python: str) -> tuple[int, int] | None:
    """(major, minor) of an interpreter, None where it does not run."""
    try:
        code = "import sys; print(*sys.version_info[:2])"
        run = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = run.stdout.split()
    return int(major), int(minor)


def find_python(names: list[str]) -> str:
    """The first of the interpreters that runs; the present one if none does."""
    return next((name for name in names if shutil.which(name) and python_version(name)), sys.executable)


def environment(end: str, python: str, pins: list[str]) -> Path:
    """The interpreter of an environment with these versions and this project."""
    folder = CACHE / end
    interpreter = folder / "bin" / "python"
    wanted = hashlib.sha256(
        "\n".join([python, PROJECT, *pins, (ROOT / "setup.cfg").read_text(encoding="utf-8")]).encode()
    ).hexdigest()
    stamp = folder / ".made-for"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for_tests = ["hypothesis", "pytest", "pytest-xdist"]
        subprocess.run([*pip, "-c", str(constraints), "-e", PROJECT, *for_tests], check=True)
        stamp.write_text(wanted)
    return interpreter


def run_tests(end: str, interpreter: Path) -> bool:
    """Whether the tests pass there."""
    code = "import sys, torch, transformers as t; print(sys.version.split()[0], torch.__version__, t.__version__)"
    versions = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    print(f"\n{end}: Python {versions[0]}, torch {versions[1]}, transformers {versions[2]}", flush=True)
    command = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "tests"]
    command += [f"--ignore={path}" for path in IGNORED]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ends", nargs="*", default=["oldest", "newest"], help="oldest, newest (default: both)")
    parser.add_argument("--python", help="the interpreter to use, instead of the one found")
    arguments = parser.parse_args()
    newest = [f"python3.{minor}" for minor in range(14, 10, -1)]
    constraints = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    choices = {"oldest": (newest[::-1], lower_bounds()), "newest": (newest, constraints)}
    if unknown := set(arguments.ends) - set(choices):
        parser.error(f"unknown: {', '.join(unknown)}")
    passed = []
    for end in arguments.ends:
        pythons, pins = choices[end]
        passed.append(run_tests(end, environment(end, arguments.python or find_python(pythons), pins)))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
