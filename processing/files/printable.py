"""Names and captions of strangers' files, made safe to show: nothing in them steers a terminal or hides what it is."""

import unicodedata

#: Joiners within emoji and Indic or Persian words; they only ever change how neighbours are drawn.
_KEPT = {"\u200c", "\u200d"}
#: Control characters (escape codes begin with one), directions and other invisible marks, halves of surrogate pairs,
#: and the two separators that break lines.
_STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str, lines: bool = False) -> str:
    r"""The text with what steers a terminal written as an escape of Python's: `\x1b`, `\n`, `\u202e`.

    Args:
        lines: leave line breaks as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character in _KEPT or (lines and character == "\n") or unicodedata.category(character) not in _STEERING
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


__all__ = ["printable"]
