"""Colours code: pygments' classes for languages that people ask about, plain text for all others."""

from __future__ import annotations

import html
from functools import lru_cache
from typing import Final

from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

LONGEST: Final = 40_000  # characters that are coloured
# pygments knows 500 languages. These are coloured: what a text names must not choose which code runs on it.
_NAMES: Final = """
asm awk bash basic c c# c++ clojure cmake console cpp cs csharp css cuda diff docker dockerfile elixir erlang fish
fortran fsharp glsl go golang graphql groovy haskell hs html http ini java javascript js json jsx julia kotlin latex
lean lisp lua make makefile markdown md matlab nginx nim objective-c ocaml octave patch perl php powershell prolog
protobuf ps1 py python python3 r racket rb regex rs ruby rust sass scala scheme scss sh shell sql svg swift tcl
terraform tex text toml ts tsx typescript vb verilog vhdl vim xml yaml yml zig zsh
"""
_LANGUAGES: Final = frozenset(_NAMES.split())
_FORMAT: Final = HtmlFormatter(nowrap=True, classprefix="c-")


def coloured(code: str, language: str) -> str:
    """The HTML of some code, in spans with classes."""
    lexer = _lexer(language.lower()) if len(code) <= LONGEST else None
    return html.escape(code) if lexer is None else str(highlight(code, lexer, _FORMAT))


@lru_cache(maxsize=len(_LANGUAGES) + 64)
def _lexer(language: str) -> Lexer | None:
    """The lexer of a language; None if it is not coloured."""
    if language not in _LANGUAGES:
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
