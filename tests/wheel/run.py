"""`make wheel`: what a user gets who installs the package instead of cloning it.

Builds the wheel, installs it with the extra `[demo]` in the versions of constraints.txt into an empty environment,
makes a model there by a short `r2d2 demo`, and runs every Python block of "First steps" in README.md and README_zh.md
with that model, in a folder outside the checkout. The environment stays in `.cache/wheel` for a look at what failed;
the next run starts anew. A few minutes; on Linux PyPI's torch is built for CUDA and several GB, so point pip at
PyTorch's index of CPU builds to save that.

    make wheel
    make wheel ARGS="--python python3.13 --steps 20"
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WORK = ROOT / ".cache" / "wheel"
#: README -> heading of the section whose blocks run.
SECTIONS = {"README.md": "## First steps", "README_zh.md": "## 上手"}
#: What the wheel is built from: copied, so that the checkout gets no build folder and only these files count.
SOURCES = (
    "modeling_r2d2",
    "processing",
    "hub_cards",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
)

SET_UP = """
import sys
from pathlib import Path
import modeling_r2d2
installed = Path(modeling_r2d2.__file__)
assert installed.is_relative_to(sys.prefix), f"not the installed wheel: {installed}"
"""
#: Each block is a user's own program; what it leaves in its scope is looked at, so that an empty block cannot pass.
CHECKS = """
if "emoji" in scope:
    from PIL import Image
    Image.open("cat.png").verify()
elif "output" in scope:
    assert scope["output"].logits_per_image.shape == (1, 2), scope["output"].logits_per_image.shape
    scores = scope["classify"]("cat.png", candidate_labels=["猫", "狗", "火车"], hypothesis_template="{}")
    assert {each["label"] for each in scores} == {"猫", "狗", "火车"}
    assert abs(sum(each["score"] for each in scores) - 1) < 1e-4, scores
    pairs = scope["match"]([("cat.png", "猫脸"), ("cat.png", "火车头")])
    assert all(0 <= each["match_probability"] <= 1 for each in pairs), pairs
else:
    assert scope["model"].config.vision_config.model_type == "convnext"
    assert [type(each).__name__ for each in scope["callbacks"]] == ["TwoWayDistillationCallback"]
print("ran", sorted(name for name in scope if not name.startswith("__")))
"""


def section_blocks(readme: str, heading: str) -> list[str]:
    """The Python blocks between a heading and the next of its level.

    Raises:
        ValueError: no such heading, or no block below it.
    """
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^## |\Z)", readme, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"there is no heading {heading!r}")
    blocks = re.findall(r"^```python\n(.*?)^```", found[1], re.DOTALL | re.MULTILINE)
    if not blocks:
        raise ValueError(f"there is no Python block below {heading!r}")
    return blocks


def build_wheel() -> Path:
    """The project's wheel, in `.cache/wheel/dist`."""
    source = WORK / "source"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    _call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", WORK / "dist", source)
    (wheel,) = (WORK / "dist").glob("*.whl")
    return wheel


def install(wheel: Path, python: str) -> Path:
    """Interpreter of an empty environment that holds the wheel with `[demo]` and nothing else."""
    _call(python, "-m", "venv", WORK / "env")
    interpreter = WORK / "env" / "bin" / "python"
    pip = (interpreter, "-m", "pip", "--disable-pip-version-check")
    _call(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", f"modeling-r2d2[demo] @ {wheel.as_uri()}")
    _call(*pip, "check")
    return interpreter


def run(interpreter: Path, steps: int) -> int:
    """Set up a user's folder, make the demo's model there, run the blocks; returns how many ran."""
    user = WORK / "user"
    user.mkdir()
    _call(interpreter, "-I", "-c", SET_UP, cwd=user)
    _call(interpreter.parent / "r2d2", "demo", "--steps", steps, "--workers", 0, cwd=user)
    count = 0
    for readme, heading in SECTIONS.items():
        for block in section_blocks((ROOT / readme).read_text(encoding="utf-8"), heading):
            count += 1
            print(f"{readme}, block {count}", flush=True)
            program = f"scope = {{}}\nexec(compile({json.dumps(block)}, {readme!r}, 'exec'), scope)\n{CHECKS}"
            _call(interpreter, "-I", "-c", program, cwd=user)
    return count


def _call(*command: object, cwd: Path | None = None) -> None:
    """Run a program, away from this process's Python settings and without a network hub.

    Raises:
        subprocess.CalledProcessError: it failed; its own output says why.
    """
    words = [str(word) for word in command]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(WORK / "hf")}
    subprocess.run(words, cwd=cwd, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the new environment")
    parser.add_argument("--steps", type=int, default=3, help="of the demo's training (default 3)")
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    wheel = build_wheel()
    print(f"built {wheel.name}; installing it with [demo] into an empty environment", flush=True)
    interpreter = install(wheel, arguments.python)
    count = run(interpreter, arguments.steps)
    print(f"passed: {count} Python blocks of {', '.join(SECTIONS)} ran with the installed {wheel.name}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed ({error.returncode}): {' '.join(error.cmd)[:300]}")
