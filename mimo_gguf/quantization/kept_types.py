"""The profile of a file whose tensors all keep their types, for runs that change something else."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

from gguf import LlamaFileType

from mimo_gguf.core.digests import RECIPE
from mimo_gguf.core.ggml_types import GgmlType, ftype_name
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.quantization.kernel_loading import LLAMA_CPP, SEARCHES
from mimo_gguf.quantization.plan import SEARCH
from mimo_gguf.quantization.profiles import MtpRule, Profile, Rule
from mimo_gguf.quantization.type_choice import EMBEDDING, OUTPUT

_WHY: Final = "as it is"
_PLAIN_NAME: Final = re.compile(r"\w[\w.-]{0,40}", re.ASCII)  # of an untrusted file, for the name of a file


def keep_types(source: ModelSource) -> Profile:
    """The profile that gives every tensor of `source` the type that it has. It has the source's name and file type."""
    types = {tensor.info.name: tensor.info.ggml_type for tensor in source.tensors}
    if OUTPUT not in types and EMBEDDING in types:
        types[OUTPUT] = types[EMBEDDING]  # the rules know a tied embedding as the output matrix
    by_type: dict[GgmlType, list[str]] = {}
    for name, ggml_type in types.items():
        by_type.setdefault(ggml_type, []).append(name)
    file_type = _file_type(source)
    stated = source.metadata.get("mimo_gguf.profile")
    name = str(stated.value) if stated else ""
    return Profile(
        name=name if _PLAIN_NAME.fullmatch(name) else ftype_name(file_type),
        path=Path(source.label),
        file_type=file_type,
        summary="the types of the source",
        aliases=(),
        default=Counter(types.values()).most_common(1)[0][0],
        rules=tuple(Rule(tuple(names), (), ggml_type, _WHY) for ggml_type, names in by_type.items()),
        mtp=MtpRule(None),
        needs_imatrix=frozenset(),
        digest=RECIPE.hex(repr(sorted((name, kind.name) for name, kind in types.items())).encode()),
    )


def kept_search(source: ModelSource) -> str:
    """How the blocks of `source` were found, by its metadata; a copy does not change that."""
    stated = source.metadata.get(SEARCH)
    return str(stated.value) if stated is not None and stated.value in SEARCHES else LLAMA_CPP


def _file_type(source: ModelSource) -> LlamaFileType:
    stated = source.metadata.get("general.file_type")
    try:
        return LlamaFileType(stated.value if stated else LlamaFileType.GUESSED)
    except ValueError:
        return LlamaFileType.GUESSED
