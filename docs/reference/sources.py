"""What public names stand for, read by griffe from the files: nothing is imported, no extra needs to be installed."""

import ast
import configparser
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[2]


@cache
def _folders() -> dict[str, str]:
    """Package -> its folder in the repository: `package_dir` of setup.cfg, longest name first."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["package_dir"].strip().splitlines()
    found = {package.strip(): folder.strip() for package, folder in (line.split("=") for line in lines)}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


@cache
def module(name: str) -> griffe.Module:
    """The parsed file of an import name; modules below a package are not read.

    Raises:
        KeyError: no such module.
    """
    path = _file(name)
    head, _, last = name.rpartition(".")
    return griffe.visit(last, filepath=path, code=path.read_text(encoding="utf-8"), parent=_parent(head))


@cache
def _parent(name: str) -> griffe.Module | None:
    """A bare package: what relative imports are resolved against."""
    head, _, last = name.rpartition(".")
    return griffe.Module(last, filepath=_file(name), parent=_parent(head)) if name else None


def _file(name: str) -> Path:
    for package, folder in _folders().items():
        if name == package or name.startswith(f"{package}."):
            place = ROOT.joinpath(folder, *name[len(package) :].strip(".").split("."))
            for path in (place / "__init__.py", place.with_suffix(".py")):
                if path.is_file():
                    return path
    raise KeyError(f"{name} is no module of this project")


def public_names(name: str) -> list[str]:
    """What a module's `__all__` lists, also where that is made of a table of lazy names; in its order.

    Raises:
        KeyError: the module states neither.
    """
    parsed = module(name)
    if parsed.exports and isinstance(parsed.exports, list) and all(isinstance(each, str) for each in parsed.exports):
        return list(parsed.exports)
    if lazy := _lazy_names(parsed):
        return sorted(lazy)
    raise KeyError(f"{name} has no __all__")


def find(module_name: str, name: str) -> griffe.Object:
    """The class, function or attribute that `module_name.name` stands for, where it is defined.

    Raises:
        KeyError: it stands for nothing in this project.
    """
    parsed = module(module_name)
    member = parsed.members.get(name)
    if isinstance(member, griffe.Alias):
        return find(*member.target_path.rsplit(".", 1))
    if member is None:
        lazy = _lazy_names(parsed)
        if name not in lazy:
            raise KeyError(f"{module_name} has no public {name}")
        return find(f"{module_name}.{lazy[name]}", name)
    return member


def _lazy_names(parsed: griffe.Module) -> dict[str, str]:
    """Name -> module below, of the tables that the packages import from on first use."""
    if "_LAZY" in parsed.members:  # name -> ".module"
        return {name: path.lstrip(".") for name, path in ast.literal_eval(str(parsed["_LAZY"].value)).items()}
    if "_NAMES" in parsed.members:  # module -> names
        table = ast.literal_eval(str(parsed["_NAMES"].value))
        return {name: path for path, names in table.items() for name in names}
    return {}
