"""Is a card valid? Checked without the Hub, whose own check needs a connection."""

from __future__ import annotations

import ast
import math
import pkgutil
import re
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData
from transformers.pipelines import PIPELINE_REGISTRY

from ..jobs.record import is_hub_name
from .licenses import HUB_LICENSES

Kind = Literal["model", "dataset"]
REQUIRED = {
    "model": ("language", "license", "library_name", "pipeline_tag", "tags"),
    "dataset": ("language", "license", "pretty_name", "task_categories", "size_categories"),
}
_CODES = """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv
    ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne
    ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st
    su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    cmn cdo cjy cpx czh czo gan hak hsn lzh mnp nan wuu yue
    """
#: ISO 639-1, and the codes of ISO 639-3 of Chinese languages.
LANGUAGES = frozenset(_CODES.split())
SIZES = (
    "n<1K",
    "1K<n<10K",
    "10K<n<100K",
    "100K<n<1M",
    "1M<n<10M",
    "10M<n<100M",
    "100M<n<1B",
    "1B<n<10B",
    "10B<n<100B",
    "100B<n<1T",
    "n>1T",
)
_OWN_TASKS = frozenset({"image-text-matching", "r2d2-zero-shot-image-classification"})
_HEADER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_BLOCK = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


class CardError(ValueError):
    """A card that the Hub would refuse or readers could not use; `problems` lists what is wrong."""

    def __init__(self, name: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{name}: " + "; ".join(problems))


def check_card(content: str, kind: Kind = "model", folder: str | PathLike | None = None) -> list[str]:
    """What is wrong with a card; empty: nothing was found.

    Looked at: the header (YAML, required keys, languages, licence, pipeline tag, names of models and data sets, sizes),
    that its `model-index` survives a round trip through `ModelCard`, that Python blocks parse, and that pictures and
    files it shows lie in `folder`. That the blocks run is what the tests check.

    Args:
        content: of the README.md.
        folder: where it lies; None: links are not looked at.
    """
    match = _HEADER.match(content)
    if match is None:
        return ["there is no header: a card begins with a line ---, YAML, and a line ---"]
    try:
        header = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"the header is not YAML: {' '.join(str(error).split())}"]
    if not isinstance(header, dict):
        return ["the header is not a mapping of keys"]
    problems = [f"the header has no {key}" for key in REQUIRED[kind] if header.get(key) in (None, "", [])]
    problems += _languages(header) + _license(header) + _names(header)
    if kind == "model":
        problems += _pipeline(header) + _model_index(header, content)
    else:
        problems += _data_set(header)
    body = content[match.end() :]
    if "{{" in body or "{%" in body:
        problems.append("the text holds unfilled template marks")
    for number, (language, code) in enumerate(code_blocks(body), start=1):
        if language == "python":
            try:
                ast.parse(code)
            except SyntaxError as error:
                problems.append(f"code block {number}, line {error.lineno} is not Python: {error.msg}")
    if folder is not None:
        shown = [name for name in _IMAGE.findall(body) if "://" not in name]
        problems += [f"the picture {name} is not there" for name in shown if not (Path(folder) / name).is_file()]
    return problems


def require_valid(content: str, kind: Kind = "model", folder: str | PathLike | None = None, name: str = "the card"):
    """Raises:
    CardError: `check_card` finds anything; says all of it.
    """
    if problems := check_card(content, kind, folder):
        raise CardError(name, problems)


def code_blocks(content: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return _BLOCK.findall(content)


def known_pipeline_tags() -> frozenset[str]:
    """Tasks that transformers or huggingface_hub know, without the ones that this package registers."""
    from huggingface_hub.inference._generated import types

    hub = {module.name.replace("_", "-") for module in pkgutil.iter_modules(types.__path__)} - {"base"}
    return frozenset(({*PIPELINE_REGISTRY.get_supported_tasks()} | hub) - _OWN_TASKS)


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _languages(header: dict) -> list[str]:
    # YAML reads the code of Norwegian, no, as False
    unknown = [code for code in _listed(header.get("language")) if code not in {*LANGUAGES, "multilingual"}]
    return [f"language {code!r} is no ISO 639 code" for code in unknown]


def _license(header: dict) -> list[str]:
    names = _listed(header.get("license"))
    problems = [f"license {name!r} is unknown to the Hub" for name in names if name not in HUB_LICENSES]
    if "other" in names and not header.get("license_name"):
        problems.append("license: other needs a license_name")
    if "other" not in names and header.get("license_name"):
        problems.append("license_name belongs to license: other")
    return problems


def _names(header: dict) -> list[str]:
    problems = []
    for key in ("base_model", "datasets"):
        for name in _listed(header.get(key)):
            if not is_hub_name(name):
                problems.append(f"{key} {name!r} is no name of the Hub (owner/name)")
    for key in ("tags", "metrics"):
        if not all(isinstance(name, str) and name for name in _listed(header.get(key))):
            problems.append(f"{key} are names, not {header[key]!r}")
    return problems


def _pipeline(header: dict) -> list[str]:
    tag = header.get("pipeline_tag")
    return [f"pipeline_tag {tag!r} is no known task"] if tag and tag not in known_pipeline_tags() else []


def _data_set(header: dict) -> list[str]:
    problems = [f"size category {s!r} is unknown" for s in _listed(header.get("size_categories")) if s not in SIZES]
    known = known_pipeline_tags() | {"other"}
    tasks = [task for task in _listed(header.get("task_categories")) if task not in known]
    return problems + [f"task category {task!r} is unknown" for task in tasks]


def _model_index(header: dict, content: str) -> list[str]:
    if "model-index" not in header:
        return []
    try:
        data = cast(ModelCardData, ModelCard(content, ignore_metadata_errors=False).data)
    except (ValueError, TypeError, KeyError) as error:
        return [f"the model-index cannot be read: {error}"]
    problems = []
    for result in data.eval_results or []:
        value = result.metric_value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            problems.append(f"the value of {result.metric_name or result.metric_type} is no finite number: {value!r}")
    again = yaml.safe_load(data.to_yaml())
    if again.get("model-index") != header["model-index"]:
        problems.append("the model-index does not survive a round trip through ModelCard")
    return problems


def load_card(path: str | PathLike, kind: Kind = "model") -> ModelCard | DatasetCard:
    """A card from its file.

    Raises:
        CardError: it is not valid.
    """
    path = Path(path)
    content = path.read_text(encoding="utf-8")
    require_valid(content, kind, path.parent, str(path))
    return (ModelCard if kind == "model" else DatasetCard)(content)


__all__ = [
    "CardError",
    "check_card",
    "code_blocks",
    "known_pipeline_tags",
    "load_card",
    "require_valid",
]
