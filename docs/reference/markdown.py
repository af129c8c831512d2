"""A class or function as Markdown: signature, docstring, methods."""

import ast
import re
import textwrap

import griffe

from .sources import ROOT

LINE = 100
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
#: Overridden for a library that calls them; users do not.
LIBRARY_METHODS = frozenset({"to_tuple", "preprocess", "postprocess"})
#: Classes with these bases are made of their annotated fields, as dataclasses are.
_FIELD_BASES = re.compile(r"(Config|Output|Arguments|NamedTuple|Kwargs)$")


class MissingDocstringError(ValueError):
    """A public class, function or method says nothing; names its file and line."""


def document(item: griffe.Object, level: int = 3) -> str:
    """The section of a class (with its public methods and properties), function or constant.

    Raises:
        MissingDocstringError: it, or a method of it, has no docstring.
    """
    names = _parameter_names(item)
    parts = [f"{'#' * level} `{_shown_name(item)}`", f"```python\n{signature(item)}\n```"]
    if item.is_class and item.bases and _parameters(item):
        parts.append(f"Bases: {_bases(item)}.")
    parts.append(_prose(_docstring(item), names))
    if level == 3:
        path = item.filepath.relative_to(ROOT).as_posix()
        parts.append(f"[{path}](../../{path})")
    if item.is_class:
        parts += [document(member, level + 1) for member in _public_members(item)]
    return "\n\n".join(part for part in parts if part)


def summary(item: griffe.Object) -> str:
    """First sentence of the docstring, on one line."""
    first = " ".join(_docstring(item).split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", first)[0]


def signature(item: griffe.Object) -> str:
    """As one would call it: a parameter a line where it is long."""
    if item.is_attribute:
        return f"{item.name}: {item.annotation}" if item.annotation else f"{item.name} = {item.value}"
    words, returns, name = _parameters(item), "", _shown_name(item)
    if item.is_class and not words:  # its constructor is its base's
        return f"class {name}({', '.join(map(str, item.bases))})" if item.bases else f"class {name}"
    if not item.is_class and item.returns is not None:
        returns = f" -> {item.returns}"
    line = f"{name}({', '.join(words)}){returns}"
    if len(line) <= LINE:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){returns}"])


def _shown_name(item: griffe.Object) -> str:
    return f"{item.parent.name}.{item.name}" if item.parent is not None and item.parent.is_class else item.name


def _bases(item: griffe.Class) -> str:
    return ", ".join(f"`{base}`" for base in item.bases)


def _docstring(item: griffe.Object) -> str:
    if item.docstring is None or not item.docstring.value.strip():
        place = f"{item.filepath.relative_to(ROOT)}:{item.lineno}"
        raise MissingDocstringError(f"{place}: {item.path} is public and has no docstring")
    return item.docstring.value


def _public_members(item: griffe.Class) -> list[griffe.Object]:
    """Methods and properties that a user calls, in the order of the file."""
    found = []
    for name, member in item.members.items():
        is_called = member.is_function or (member.is_attribute and "property" in member.labels)
        if not is_called or name in LIBRARY_METHODS:
            continue
        if not name.startswith("_") or (name == "__call__" and member.docstring is not None):
            found.append(member)
    return sorted(found, key=lambda member: member.lineno)


def _fields(item: griffe.Class) -> list[griffe.Attribute]:
    """Annotated attributes that its constructor takes; none where it has a constructor of its own."""
    made_of_fields = "dataclass" in item.labels or any(_FIELD_BASES.search(str(base)) for base in item.bases)
    if "__init__" in item.members or not made_of_fields:
        return []
    members = [member for name, member in item.members.items() if not name.startswith("_")]
    fields = [member for member in members if member.is_attribute and member.annotation is not None]
    # griffe labels what is no ClassVar and no property as an attribute of the instance too
    return [field for field in fields if "instance-attribute" in field.labels]


def _parameters(item: griffe.Object) -> list[str]:
    if item.is_class:
        if fields := _fields(item):
            return [_word(field.name, field.annotation, field.value) for field in fields]
        if "__init__" not in item.members:
            return []
        item = item.members["__init__"]
    words: list[str] = []
    keyword_only = False
    for place, parameter in enumerate(item.parameters):
        if place == 0 and item.parent.is_class and parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and not keyword_only:
            words.append("*")
        keyword_only |= kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
        stars = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(kind, "")
        words.append(_word(stars + parameter.name, parameter.annotation, None if stars else parameter.default))
    return words


def _word(name: str, annotation: object, default: object) -> str:
    word = name if annotation is None else f"{name}: {annotation}"
    if default is None:
        return word
    text = _default(str(default).replace("\n", " "))
    if text is None:
        return word
    return f"{word} = {text}" if annotation is not None else f"{word}={text}"


def _default(text: str) -> str | None:
    """What a default amounts to: of `field(…)` the value, or what its factory makes; None: it has neither."""
    tree = ast.parse(text, mode="eval").body
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "field"):
        return text
    given = {keyword.arg: keyword.value for keyword in tree.keywords}
    if "default" in given:
        return ast.unparse(given["default"])
    factory = given.get("default_factory")
    if factory is None:
        return None
    return ast.unparse(factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], []))


def _parameter_names(item: griffe.Object) -> list[str]:
    names = [re.match(r"\**(\w+)", word)[1] for word in _parameters(item) if word != "*"] if _is_called(item) else []
    if item.is_class:  # what a class's docstring explains beside its parameters
        names += [name for name, member in item.members.items() if member.is_attribute and not name.startswith("_")]
    return sorted(set(names), key=len, reverse=True)


def _is_called(item: griffe.Object) -> bool:
    return item.is_class or item.is_function


def _prose(text: str, names: list[str]) -> str:
    """A docstring in Markdown: its sections as lists, parameters that it explains as code."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n").removesuffix("\n\nExamples:")):
        lines = block.split("\n")
        starts = [place for place, line in enumerate(lines) if line.strip().rstrip(":") in SECTIONS]
        starts = [place for place in starts if lines[place].endswith(":")]
        before = lines[: starts[0]] if starts else lines
        if before:
            parts.append(_paragraph("\n".join(before), names))
        for place, end in zip(starts, [*starts[1:], len(lines)][: len(starts)], strict=True):
            parts.append(_section(lines[place].strip().rstrip(":"), lines[place + 1 : end], names))
    return "\n\n".join(parts)


def _section(title: str, lines: list[str], names: list[str]) -> str:
    """Arguments and errors as a list; what is returned as a sentence."""
    if title in ("Returns", "Yields"):
        return f"**{title}** {_marked(' '.join(line.strip() for line in lines), names)}"
    if title == "Raises":
        marked = [_marked(each, names, errors=True) for each in _items(lines)]
    else:
        marked = [re.sub(r"^(\w+)(?=: )", r"`\1`", _marked(each, names)) for each in _items(lines)]
    return f"**{title}**\n\n" + "\n".join(f"- {each}" for each in marked)


def _items(lines: list[str]) -> list[str]:
    """Entries of a section: a line that is indented further goes on with the one before."""
    lines = textwrap.dedent("\n".join(lines)).split("\n")
    items: list[str] = []
    for line in lines:
        if items and line.startswith(" "):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line.strip())
    return [item for item in items if item]


def _paragraph(text: str, names: list[str]) -> str:
    if text.startswith(("```", "    ", "|")):
        return text  # code, a formula, a table: as it is
    lines = text.split("\n")
    if len(lines) > 1 and all(line.startswith("    ") for line in lines[1:]):
        if not lines[0].endswith(":"):  # a formula of several lines
            return "\n".join(f"    {line}" for line in lines)
        return f"{_marked(lines[0], names)}\n\n" + "\n".join(lines[1:])  # one below its sentence
    return _marked(text, names)


def _marked(text: str, names: list[str], errors: bool = False) -> str:
    """Code marks around `name:` and `name, other (a remark):` at the start of a sentence; HTML made harmless."""
    pieces = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.DOTALL)
    pieces[::2] = [re.sub(r"<(?=[A-Za-z/!])", "&lt;", piece).replace("**", r"\*\*") for piece in pieces[::2]]
    text = "".join(pieces)
    one = r"[A-Z]\w*(?:Error|Exception)" if errors else "|".join(map(re.escape, names))
    if not one:
        return text
    group = rf"(?:{one})(?: \([^)]*\))?(?:, (?:{one})(?: \([^)]*\))?)*"
    pattern = rf"(^|(?<=[.;,] )|(?<=[.;,]\n))({group})(?=:(?:\s|$))"
    return re.sub(pattern, lambda found: re.sub(rf"(?<![\w`(])({one})\b", r"`\1`", found[2]), text)
