"""Upload a model folder: what goes, what stays behind and why, and what must not be published."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from transformers.dynamic_module_utils import get_relative_imports

from ..inference.finite import NotFiniteError, require_finite_file
from ..inference.folders import read_json_object
from .checking import check_card, code_blocks
from .inspection import problems_of

#: By-products of a run, which stay behind: pattern on the path -> why.
LEFT_OUT = {
    ".*": "hidden",
    "*/.*": "hidden",
    "checkpoint-*/*": "training checkpoint",
    "training_args.bin": "pickle of the training arguments, which the card states",
    "trainer_state.json": "log of the training, which names folders of this machine",
    "__pycache__/*": "Python's cache",
    "*/__pycache__/*": "Python's cache",
    "*events.out.tfevents*": "training log",
}
_STATE = ("optimizer.pt", "scheduler.pt", "optimizer.bin", "rng_state.pth", "scaler.pt")


class PushRefusedError(ValueError):
    """A folder that must not be published as it is; `problems` lists why, by file."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{folder} is not pushed:\n" + "\n".join(f"- {problem}" for problem in problems))


@dataclass
class PushPlan:
    """What a push would do.

    Args:
        files: path in the repository -> bytes.
        left_out: path -> why it stays behind.
        problems: what forbids the push.
        warnings: what does not.
    """

    folder: Path
    files: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes to upload."""
        return sum(self.files.values())


def plan_push(folder: str | PathLike, repo_id: str | None = None, exclude: Sequence[str] = ()) -> PushPlan:
    """Look at every file of a model folder; nothing is sent.

    Args:
        repo_id: to compare the card's code with.
        exclude: further patterns on paths that stay behind.

    Raises:
        NotADirectoryError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    plan = PushPlan(folder)
    patterns = {**LEFT_OUT, **dict.fromkeys(exclude, "--exclude")}
    if state := [name for name in _STATE if (folder / name).exists()]:
        plan.problems.append(
            f"this is a training checkpoint ({', '.join(state)}): push the folder that the run has written at its end"
        )
    for path, name in _walk(folder):
        reason = next((why for pattern, why in patterns.items() if fnmatch(name, pattern)), None)
        if reason is not None and name != ".gitattributes":
            plan.left_out[name] = reason
        elif problem := _link_problem(path, folder):
            plan.problems.append(f"{name}: {problem}")
        elif problems := problems_of(path, name):
            plan.problems += problems
        else:
            plan.files[name] = path.stat().st_size
            if path.suffix == ".safetensors" and (problem := _not_finite(path)):
                plan.problems.append(f"{name}: {problem}")
            _warn_of_paths(path, name, plan)
    plan.problems += _lacking(plan)
    if repo_id is not None:
        plan.warnings += _other_names(folder, repo_id)
    return plan


def _not_finite(path: Path) -> str | None:
    try:
        require_finite_file(path)
    except NotFiniteError as error:
        return str(error).removeprefix(f"{path}: ")
    except SafetensorError as error:
        return f"no safetensors file: {error}"
    return None


def push_folder(
    folder: str | PathLike,
    repo_id: str,
    *,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    exclude: Sequence[str] = (),
    token: str | None = None,
    endpoint: str | None = None,
) -> CommitInfo:
    """Make the repository if it is not there, and upload the planned files in one commit.

    Files of the repository that the folder does not hold stay there. The token is huggingface_hub's
    (`hf auth login`, `HF_TOKEN`) unless one is given; `endpoint` likewise (`HF_ENDPOINT`).

    Raises:
        PushRefusedError: see `plan_push`; nothing was sent.
        ValueError: not a repository name (owner/name).
        OSError: the Hub cannot be reached, or refuses.
    """
    check_repo_id(repo_id)
    plan = plan_push(folder, repo_id, exclude)
    if plan.problems:
        raise PushRefusedError(plan.folder, plan.problems)
    api = HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    operations = [CommitOperationAdd(name, str(plan.folder / name)) for name in plan.files]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=message or f"Upload {plan.folder.resolve().name}",
        revision=revision,
        create_pr=create_pr,
    )


def check_repo_id(repo_id: str) -> None:
    """Raises:
    ValueError: not `owner/name` in the letters that the Hub allows.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no repository name: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} names no owner: write owner/name")


def _walk(folder: Path) -> list[tuple[Path, str]]:
    """Every file with its path in the repository; linked folders are not entered but listed."""
    found = []
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in [*names, *links]:
            path = Path(root) / name
            found.append((path, path.relative_to(folder).as_posix()))
    return sorted(found, key=lambda item: item[1])


def _link_problem(path: Path, folder: Path) -> str | None:
    """Why a link must not be followed; None: it is none, or leads to a file within."""
    if path.is_symlink() and (not path.is_file() or not path.resolve().is_relative_to(folder.resolve())):
        return "a link to outside the folder, to a folder or to nothing: copy what it stands for, or delete it"
    return None


def _warn_of_paths(path: Path, name: str, plan: PushPlan) -> None:
    """Paths below the user's home, in texts."""
    home = f"{Path.home()}/"
    if len(home) < 3 or path.suffix == ".safetensors":
        return
    with path.open("rb") as file:
        if b"\0" in file.read(8192):
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if home.encode() in line:
                plan.warnings.append(f"{name}:{number}: names a path of this machine")


def _lacking(plan: PushPlan) -> list[str]:
    """What a published model needs and is not among the files: configuration, weights, code, card."""
    problems = []
    if not any(name.endswith(".safetensors") for name in plan.files):
        problems.append("there are no weights (*.safetensors)")
    if "config.json" not in plan.files:
        problems.append("there is no config.json")
    else:
        config = read_json_object(plan.folder / "config.json")
        listed = [each if isinstance(each, list) else [each] for each in (config.get("auto_map") or {}).values()]
        references = [each for several in listed for each in several if each]
        modules = {f"{reference.split('--')[-1].split('.')[0]}.py" for reference in references}
        if not modules:
            problems.append("config.json names no code (auto_map): without this package, nobody could load the model")
        for module in sorted(modules):
            if module not in plan.files:
                problems.append(f"{module} is not there, which config.json names: save the model again")
                continue
            needed = {f"{name}.py" for name in get_relative_imports(plan.folder / module)}
            problems += [f"{name} is not there, which {module} imports" for name in sorted(needed - set(plan.files))]
    if "README.md" not in plan.files:
        problems.append(f"there is no card (README.md): make one by `r2d2 card {shlex.quote(str(plan.folder))}`")
    else:
        content = (plan.folder / "README.md").read_text(encoding="utf-8")
        problems += [f"README.md: {problem}" for problem in check_card(content, "model", plan.folder)]
    return problems


def _other_names(folder: Path, repo_id: str) -> list[str]:
    """The card's code should load what is published."""
    path = folder / "README.md"
    if not path.is_file():
        return []
    code = "\n".join(block for _, block in code_blocks(path.read_text(encoding="utf-8")))
    named = set(re.findall(r'(?:from_pretrained\(|model=)"([^"]+)"', code)) - {repo_id}
    command = f"`r2d2 card {shlex.quote(str(folder))} --repo {repo_id} --overwrite`"
    return [f"README.md: its code loads {name!r}, not {repo_id!r}: {command}" for name in named]


__all__ = ["PushPlan", "PushRefusedError", "check_repo_id", "plan_push", "push_folder"]
