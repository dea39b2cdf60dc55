"""What a user may name as a model: a GGUF file, a checkpoint folder, or a model on the Hub; the latter with a type.

MiMo-7B-RL-Q4_K_M.gguf            a file
./MiMo-7B-RL, ./MiMo-7B-RL:Q6_K   a checkpoint folder, as the type that fits or as Q6_K
org/name, org/name:Q6_K           a model on the Hub
org/name@revision:Q6_K            a branch, tag or commit of it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mimo_gguf.conversion.hub import parse_hub_id
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import near_matches
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.published_model import PUBLISHED_IDS

NameKind = Literal["file", "folder", "hub"]

_TYPE: Final = re.compile(r"(?P<source>.+?):(?P<type>[A-Za-z][\w-]*)")  # not C:\model, nor modelscope:org/name
# The type at the end of a file's name, as everybody writes it: model-Q4_K_M.gguf, model.IQ2_XXS-00001-of-00002.gguf
_FILE_TYPE: Final = re.compile(
    r"[-._](?P<type>(?:UD-)?(?:I?Q\d\w*|TQ\d_\d|B?F16|F32|FP16|FP32|MXFP4\w*))(?:-\d{5}-of-\d{5})?\.gguf",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model as it was named.

    Attributes:
        source: the file, the folder, or the Hub id with its revision.
        file_type: the type that was asked for, like "Q6_K"; None leaves it to the plan.
    """

    kind: NameKind
    source: str
    file_type: str | None = None

    def __str__(self) -> str:
        return self.source + (f":{self.file_type}" if self.file_type else "")


def parse_model_name(text: str) -> ModelName | None:
    """The model that `text` names, or None if it has none of the forms. The Hub is not asked."""
    if not text:  # which pathlib takes for the current folder
        return None
    if text.lower().endswith(".gguf") or path_kind(text) in ("file", "special"):
        return ModelName("file", text)
    if path_kind(text) == "folder":
        return ModelName("folder", text)
    match = _TYPE.fullmatch(text)
    source, file_type = (match["source"], match["type"].upper()) if match else (text, None)
    if path_kind(source) == "folder":
        return ModelName("folder", source, file_type)
    hub_id = parse_hub_id(source)
    return None if hub_id is None else ModelName("hub", str(hub_id), file_type)


def no_such_model(text: str, known: tuple[str, ...] = ()) -> UsageError:
    """The error about a text that names no model, with names that are spelled alike."""
    word = text.rpartition("/")[2]
    whole = {name.rpartition("/")[2]: name for name in (*PUBLISHED_IDS, *known)}
    near = [whole[name] for name in near_matches(word, whole)]
    hint = f"did you mean {' or '.join(near)}?" if near else "give a GGUF file, a checkpoint folder or a Hub id"
    return UsageError(f"{text}: no such file or folder", hint=hint)


def file_type_of(path: str | Path) -> str:
    """The type in a file's name, in capitals; empty if there is none."""
    match = _FILE_TYPE.search(Path(path).name)
    return match["type"].upper() if match else ""
