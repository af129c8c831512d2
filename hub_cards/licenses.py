"""Licences: the identifiers that the Hub knows, and the terms of data sets as their publishers state them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..jobs.record import is_hub_name
from ..processing.datasets.emoji import OPENLY_LICENSED

_IDENTIFIERS = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma apple-ascl apple-amlr
    eupl-1.2 intel-research unknown other
    """
#: https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENSES = frozenset(_IDENTIFIERS.split())

#: What the publishers of data sets that this project reads have stated. Sets that are not here: unknown.
STATED_TERMS = {
    "zero": "research use only",
    "wukong": "CC BY-NC-SA, no redistribution",
    "twemoji": OPENLY_LICENSED["twitter"],
    "noto emoji": OPENLY_LICENSED["google"],
}


@dataclass(frozen=True)
class DataSource:
    """A data set that a model was trained on, and its licence; None: unknown."""

    name: str
    license: str | None = None

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """`NAME` or `NAME=LICENCE`; without a licence, the terms its publisher has stated, where this project knows
        them.

        Raises:
            ValueError: no name.
        """
        name, _, license = (part.strip() for part in text.partition("="))
        if not name:
            raise ValueError(f"{text!r} names no data set: write NAME or NAME=LICENCE")
        return cls(name, license or STATED_TERMS.get(name.lower()))

    @property
    def hub_id(self) -> str | None:
        """The name where it is one of the Hub (`owner/name`)."""
        return self.name if "/" in self.name and is_hub_name(self.name) else None


def license_fields(license: str | None) -> dict[str, Any]:
    """Header fields of a licence: one that the Hub knows, or another by its name (`license: other`). None: unknown."""
    if license is None:
        return {"license": "unknown"}
    if license.lower() in HUB_LICENSES - {"other"}:
        return {"license": license.lower()}
    if license.lower() == "other":
        raise ValueError("licence 'other' says nothing: give the licence's own name")
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-") or "own-terms"}


__all__ = ["HUB_LICENSES", "STATED_TERMS", "DataSource", "license_fields"]
