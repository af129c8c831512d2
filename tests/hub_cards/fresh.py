"""Code blocks of cards in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_r2d2":
            raise ModuleNotFoundError("this process does not have modeling_r2d2", name=name)

blocks, without = json.loads(sys.stdin.read())
if without:
    sys.meta_path.insert(0, Blocker())
sys.path = [place for place in sys.path if place]
for name, block in blocks:
    print("#", name, flush=True)
    exec(compile(block, name, "exec"), {"__name__": name})
print("# all done")
"""


def run_blocks(
    blocks: list[tuple[str, str]], folder: Path, home: Path, package: bool = False, **environment: str
) -> dict[str, str]:
    """Run (name, code) one after another in `folder`, each in a scope of its own; what each printed, by name.

    package: whether modeling_r2d2 may be imported there; without, only the code that travels with a model is.
    """
    values = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))},
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hf"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PROGRAM],
        input=json.dumps([blocks, not package]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=values,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert done.stdout.endswith("# all done\n")
    printed: dict[str, str] = {}
    for line in done.stdout.splitlines():
        if line.startswith("# "):
            name = line[2:]
            printed[name] = ""
        else:
            printed[name] += f"{line}\n"
    return printed
