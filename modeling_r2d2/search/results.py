"""What a search found, and how it is shown: table, JSON, CSV, contact sheet (PNG and one self-contained HTML file)."""

import base64
import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from PIL import Image

from ..inference.finite import to_json as finite_json
from ..processing.files.images import ImageReadError
from ..processing.files.writing import write_text
from .images import CollectionImage

#: By this a page is known for ours.
_PAGE_BEGIN = '<!doctype html><html lang="zh"><meta charset="utf-8"><meta name="generator" content="modeling_r2d2">'

_COLUMNS = ("rank", "id", "path", "score", "match_probability", "cosine")
_HEADER = ("query", *_COLUMNS, "text", "problem")


@dataclass(frozen=True)
class SearchHit:
    """One found picture, or caption.

    Args:
        score: of candidates both stages' evidence, see `R2D2Retriever.search`; below them by cosine, lowered as far as
            it needs for scores to fall with the rank. Where nothing was ranked, the cosine.
        match_probability: calibrated where the model has a calibration, None for what the ranker was not asked about.
        raw_match_probability: before calibration, where there is one.
        cosine: in [-1, 1].
        text: the caption, where captions were searched; id and path are then those of its first picture.
        problem: "missing" or "changed" where the file is no longer what was indexed.
        metadata: the source's other columns.
    """

    rank: int
    id: str
    path: str | None
    score: float
    match_probability: float | None
    cosine: float
    raw_match_probability: float | None = None
    text: str | None = None
    problem: str | None = None
    metadata: dict | None = None
    image: CollectionImage | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        """Plain values for JSON; what is beyond the six common keys only where there is something to say."""
        common = {name: getattr(self, name) for name in _COLUMNS}
        more = {name: getattr(self, name) for name in ("raw_match_probability", "text", "problem", "metadata")}
        return {**common, **{name: value for name, value in more.items() if value is not None}}


@dataclass(frozen=True)
class SearchResult:
    """A query, a text or the name of a picture's file, and its hits, best first.

    Args:
        image: the query's picture.
    """

    query: str
    hits: list[SearchHit]
    image: Image.Image | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}


def to_json(results: Sequence[SearchResult]) -> str:
    """`[{"query", "hits": [{"rank", "id", "path", "score", "match_probability", "cosine"}]}]`."""
    return finite_json([result.to_dict() for result in results], "search results", indent=2)


def to_csv(results: Sequence[SearchResult], line_end: str = "\n") -> str:
    """A line for each hit, RFC 4180, with a header: query, rank, id, path, score, match_probability, cosine, text,
    problem.

    A text that a spreadsheet would take for a formula (it begins with =, +, -, @, a tab or a return) gets an
    apostrophe before it; JSON holds it as it is.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=line_end)
    writer.writerow(_HEADER)
    for result in results:
        for hit in result.hits:
            values = [getattr(hit, name) for name in _HEADER[1:]]
            writer.writerow([_no_formula(value) for value in (result.query, *values)])
    return out.getvalue()


def _no_formula(value: object) -> object:
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_sheet(results: Sequence[SearchResult], path: str | PathLike, title: str | None = None) -> tuple[Path, Path]:
    """The contact sheet of a search as PNG, and as one HTML file that holds its pictures.

    Args:
        path: of either file; the other gets the same name with its own suffix.

    Returns:
        the PNG and the HTML file.
    """
    from ..figures.contact_sheet import Hit, Query, contact_sheet

    path = Path(path)
    refuse_foreign_sheet(path)
    png, page = path.with_suffix(".png"), path.with_suffix(".html")
    queries = [
        Query(
            result.image or result.query,
            {"found": [Hit(hit.text or _thumbnail(hit), hit.score, False) for hit in result.hits]},
        )
        for result in results
    ]
    contact_sheet(queries, png, title=title)
    write_text(page, _page(results, title or "r2d2 search"))
    return png, page


def refuse_foreign_sheet(path: str | PathLike) -> None:
    """Raise where one of the two files of `write_sheet` is there and is no sheet of ours.

    Raises:
        FileExistsError: names it.
    """
    from ..figures.drawings import refuse_foreign_drawing

    refuse_foreign_drawing(Path(path).with_suffix(".png"))
    page = Path(path).with_suffix(".html")
    if page.is_symlink() or page.exists():
        with page.open("rb") as file:
            if file.read(len(_PAGE_BEGIN)) != _PAGE_BEGIN.encode():
                raise FileExistsError(f"{page} was not written by this program: name another file, or delete it first")


def refuse_foreign_hits(path: str | PathLike) -> None:
    """Raise where a file is in the place of one that `r2d2 search` writes, and holds no hits: a list of pairs, say.

    Hits are told by what they begin with: JSON by its first query, CSV by its header, a table by the names of its
    columns, whatever the file is called. An empty file holds nothing to lose.

    Raises:
        FileExistsError: names it.
    """
    path = Path(path)
    if not path.is_file():
        return
    with path.open("rb") as file:
        begin = file.read(65536).decode("utf-8-sig", errors="replace").strip()
    first, *lines = begin.splitlines() or [""]
    as_json = re.match(r'\[\s*\{\s*"query":', begin)
    as_csv = first == ",".join(_HEADER)
    as_table = lines[:1] == ["nothing found"] or any(re.match(r" *rank +score +match +cosine ", e) for e in lines[:3])
    if begin and not (as_json or as_csv or as_table):
        raise FileExistsError(f"{path} holds no hits of a search: name another file, or delete it first")


def _thumbnail(hit: SearchHit, side: int = 256) -> Image.Image:
    """The picture, small; an empty tile where it cannot be read any more."""
    try:
        if hit.image is None:
            raise ImageReadError(hit.id)
        image = hit.image.open()
    except ImageReadError:
        return Image.new("RGB", (side, side), "#e4e7eb")
    image.thumbnail((side, side))
    return image


def _page(results: Sequence[SearchResult], title: str) -> str:
    blocks = []
    for result in results:
        figures = []
        for hit in result.hits:
            shown = (
                f'<p class="t">{html.escape(hit.text)}</p>' if hit.text is not None else _tag(_thumbnail(hit), hit.id)
            )
            match = "" if hit.match_probability is None else f" · match {hit.match_probability:.3f}"
            name = html.escape(hit.id) + (f" ({hit.problem})" if hit.problem else "")
            caption = f"<b>{hit.rank}</b> {hit.score:.3f}{match} · cosine {hit.cosine:.3f}<br>{name}"
            figures.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
        query = _tag(result.image, result.query) if result.image is not None else ""
        found = "".join(figures) or "<p>nothing found</p>"
        blocks.append(f"<section><h2>{query}{html.escape(result.query)}</h2>{found}</section>")
    style = (
        "body{font:14px sans-serif;margin:2em;color:#1f2933}figure{display:inline-block;width:180px;margin:6px;"
        "vertical-align:top}img{max-width:180px;max-height:180px}figcaption{color:#7b8794;word-break:break-all}"
        ".t{height:100px;border:1px solid #e4e7eb;padding:8px;overflow:auto}"
    )
    return (
        f"{_PAGE_BEGIN}<title>{html.escape(title)}</title>"
        f"<style>{style}</style><h1>{html.escape(title)}</h1>{''.join(blocks)}</html>\n"
    )


def _tag(image: Image.Image, name: str) -> str:
    data = io.BytesIO()
    small = image.convert("RGB")
    small.thumbnail((256, 256))
    small.save(data, "JPEG", quality=85)
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{html.escape(name, quote=True)}" src="data:image/jpeg;base64,{encoded}">'
