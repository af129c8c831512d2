"""Options of every verb that reads a person's files: names of columns, and the encoding of text."""

from typing import Annotated

import typer

ImageColumn = Annotated[
    str | None, typer.Option(help="Column (or key) of the pictures; default: image, file_name, 图片, … as found.")
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column (or key) of the texts; default: text, caption, 标题, … as found.")
]
Encoding = Annotated[
    str | None, typer.Option(help="Of text files: gb18030, big5, …; default: UTF-8, UTF-16 or GB18030, as found.")
]


def columns_of(image: str | None, text: str | None, label: str | None = None) -> dict[str, str] | None:
    """`columns` of `load_pairs`, or None where no column was named."""
    named = {"image": image, "text": text, "label": label}
    return {field: name for field, name in named.items() if name is not None} or None
