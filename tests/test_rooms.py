"""A room imports only from rooms above it in the table of CONTRIBUTING.md.

`python -m tests.test_rooms` prints which imports from which. Imports within functions and those for type
checkers count too.
"""

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "modeling_r2d2": "modeling_r2d2",
    "processing": "modeling_r2d2.processing",
    "hub_cards": "modeling_r2d2.hub_cards",
}
ROOMS = re.findall(r"^\| `([\w.]+)` +\| .* \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)


def package_files() -> dict[str, Path]:
    """The modules of the installed package and where each lies."""
    files = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            name = ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
            files[name.removesuffix(".__init__")] = path
    return files


def imports() -> dict[str, set[str]]:
    """Of each module the modules of the package that it imports."""
    files = package_files()
    found = defaultdict(set)
    for module, path in files.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) + 1 - node.level] if node.level else []
                base = ".".join([*base, *filter(None, [node.module])])
                names = [f"{base}.{name.name}" for name in node.names]
                names = [name if name in files else base for name in names]
            else:
                continue
            found[module].update(name for name in names if name in files and name != module)
    return found


def room(module: str) -> str:
    """The room of a module as the table names it; a folder that it does not name is called as it is."""
    inner = module.removeprefix("modeling_r2d2").removeprefix(".")
    if inner in ("", "registration"):
        return "root"
    fitting = [name for name in ROOMS if f"{inner}.".startswith(f"{name}.")]
    return max(fitting, key=len, default=inner.split(".")[0])


def graph() -> dict[str, dict[str, int]]:
    """From room to room, how many imports."""
    edges: dict[str, dict[str, int]] = {room(module): defaultdict(int) for module in package_files()}
    for module, names in imports().items():
        for name in names:
            if room(name) != room(module):
                edges[room(module)][room(name)] += 1
    return edges


def test_files_import_in_no_circle():
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the circle


def test_rooms_import_from_rooms_above():
    edges = graph()
    assert set(edges) == set(ROOMS), "CONTRIBUTING.md lists other rooms than the package has"
    order = {name: number for number, name in enumerate(ROOMS)}
    upward = [f"{a} imports {b}" for a, others in edges.items() for b in others if order[b] > order[a]]
    assert not upward
    assert len(edges) <= 20, "rooms"
    assert sum(map(len, edges.values())) <= 80, "pairs of rooms of which one imports the other"


if __name__ == "__main__":
    edges = graph()
    print(f"{len(edges)} rooms, {sum(map(len, edges.values()))} edges")
    for name in sorted(edges, key=ROOMS.index):
        print(
            f"{name:20} <- {', '.join(f'{other} {count}' for other, count in sorted(edges[name].items())) or 'nothing'}"
        )
