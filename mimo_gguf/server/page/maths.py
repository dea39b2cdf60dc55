"""Turns LaTeX into MathML that is safe to show: every element and attribute is one of a list, all text is escaped.

latex2mathml does the work. Its own text is not escaped, and it knows macros, so its elements are written here.
"""

from __future__ import annotations

import html
import re
from functools import lru_cache
from typing import Final
from xml.etree.ElementTree import Element

LONGEST: Final = 4000  # characters of a formula; a longer one is shown as it was written
_DEEPEST: Final = 40  # braces within braces
_MACROS: Final = re.compile(r"\\(?:(?:re)?newcommand|providecommand|[egx]?def|let)\b")
# What latex2mathml does not know, as what it knows: (pattern, replacement).
_OTHER_NAMES: Final = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(begin|end)\{(?:aligned|align|split|eqnarray|alignat)\*?\}", r"\\\1{align*}"),
        (r"\\(begin|end)\{(?:gathered|gather|multline)\*?\}", r"\\\1{matrix}"),
        (r"\\(begin|end)\{[dr]cases\}", r"\\\1{cases}"),
        (r"\\(?:begin|end)\{(?:equation|displaymath|math)\*?\}", ""),
        (r"\\tfrac\b", r"\\frac"),
        (r"\\lvert\b|\\rvert\b", "|"),
        (r"\\(?:label|nonumber|notag)\b(?:\{[^{}]*\})?", ""),
    )
)
_NAMES: Final = """
math mrow mi mn mo mtext mspace ms mfrac msqrt mroot mstyle merror mpadded mphantom msub msup msubsup munder mover
munderover mmultiscripts mprescripts mtable mtr mtd
"""
_ELEMENTS: Final = frozenset(_NAMES.split())
_WORDS: Final = {
    "display": frozenset({"block", "inline"}),
    "displaystyle": frozenset({"true", "false"}),
    "stretchy": frozenset({"true", "false"}),
    "fence": frozenset({"true", "false"}),
    "accent": frozenset({"true", "false"}),
    "accentunder": frozenset({"true", "false"}),
    "movablelimits": frozenset({"true", "false"}),
    "form": frozenset({"prefix", "infix", "postfix"}),
    "mathvariant": frozenset({"normal"}),
}
_SIZE_NAMES: Final = "width height depth lspace rspace voffset minsize maxsize linethickness scriptlevel"
_SIZES: Final = frozenset(_SIZE_NAMES.split())
_SIZE: Final = re.compile(r"[+-]?\d{0,2}(?:\.\d{1,4})?(?:em|ex|px|%)?")
_ALIGNED: Final = {"left": "at-left", "right": "at-right"}
_BOXED: Final = re.compile(r"box|strike|circle")


@lru_cache(maxsize=1024)  # a growing text is rendered again and again
def to_mathml(tex: str, *, display: bool) -> str | None:
    """The MathML of a formula, without its marks; None if it cannot be made.

    Args:
        display: whether the formula stands on a line of its own.
    """
    from latex2mathml.converter import Converter

    if len(tex) > LONGEST or _depth(tex) > _DEEPEST or _MACROS.search(tex):
        return None
    for pattern, new in _OTHER_NAMES:
        tex = pattern.sub(new, tex)
    try:
        root = Converter(display="block" if display else "inline").convert_to_element(tex)
        return "".join(_written(root))
    except Exception:  # its errors have no common class, and StopIteration and RecursionError are among them
        return None


def _depth(tex: str) -> int:
    """How deep braces, environments and scripts are within each other, at most."""
    deepest = at = 0
    for mark in re.findall(r"[{}]|\\begin|\\end|\\left|\\right", tex):
        at += 1 if mark in {"{", "\\begin", "\\left"} else -1
        deepest = max(deepest, at)
    return max(deepest, max((len(run) for run in re.findall(r"(?:\\[a-z]+\s*|[\^_]\s*)+", tex)), default=0) // 8)


def _written(element: Element) -> list[str]:
    """An element as text. What is not of the list is left out, and its children stay."""
    known = element.tag in _ELEMENTS
    name = element.tag if known else "mrow"
    parts = [f"<{name}{_attributes(element)}>", _escaped(element.text)]
    for child in element:
        parts += _written(child)
        parts.append(_escaped(child.tail))
    parts.append(f"</{name}>")
    return parts


def _attributes(element: Element) -> str:
    found = [
        f' {name}="{value}"'
        for name, value in element.attrib.items()
        if value in _WORDS.get(name, ()) or (name in _SIZES and value and _SIZE.fullmatch(value))
    ]
    classes = [_ALIGNED[value] for name, value in element.attrib.items() if name == "columnalign" and value in _ALIGNED]
    if element.tag == "menclose":
        kind = _BOXED.search(element.get("notation", ""))
        classes.append(f"in-{kind[0]}" if kind else "in-box")
    if element.tag == "mtable" and "solid" in element.get("columnlines", ""):
        classes.append("ruled")
    return "".join(found) + (f' class="{" ".join(classes)}"' if classes else "")


def _escaped(text: str | None) -> str:
    """Text of the library, which has character references in it, as text of a document."""
    return html.escape(html.unescape(text)) if text else ""
