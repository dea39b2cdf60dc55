"""The chat templates of a checkpoint, from the four places where transformers keeps them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gguf import GGUFValueType

from mimo_gguf.conversion.checkpoint_files import read_optional_json, read_text
from mimo_gguf.core.model_source import Metadata, array, string
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.units import listed

_DEFAULT: Final = "default"
_KEY: Final = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """The default template, the others by name, and what the user should know, in words."""

    default: str | None
    named: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def metadata(self) -> Metadata:
        """The keys that llama.cpp has for templates: `tokenizer.chat_template`, and `.NAME` for the others."""
        keys = {} if self.default is None else {_KEY: string(self.default)}
        keys |= {f"{_KEY}.{name}": string(text) for name, text in self.named.items()}
        if self.named:
            keys["tokenizer.chat_templates"] = array(GGUFValueType.STRING, list(self.named))
        return keys


def read_chat_templates(
    folder: Path, tokenizer_config: Mapping[str, Any], *, has_processor: bool = False
) -> ChatTemplates:
    """The templates of the checkpoint in `folder`.

    A template file wins over tokenizer_config.json, and that wins over chat_template.json. If several templates have
    names and none is the default, there is no default: transformers does not choose either.

    Args:
        has_processor: whether the model is used through a processor, as those that see images are. A processor reads
            chat_template.json first: https://github.com/huggingface/transformers, `get_processor_dict`.

    Raises:
        CheckpointError: a template file cannot be read.
    """
    of_tokenizer = _by_name(tokenizer_config.get("chat_template"))
    of_processor = _by_name(read_optional_json(folder / "chat_template.json").get("chat_template"))
    if not (has_processor and of_processor):
        return _choose_default(_from_files(folder) or of_tokenizer or of_processor)
    if of_tokenizer in ({}, of_processor):
        return _choose_default(of_processor)
    chosen = _choose_default(of_processor)
    note = "chat_template.json is used, as by the model's processor; tokenizer_config.json has another template"
    return replace(chosen, notes=(*chosen.notes, note))


def _choose_default(named: dict[str, str]) -> ChatTemplates:
    default = named.pop(_DEFAULT, None)
    others = {_safe(name): text for name, text in named.items()}
    if default is not None or not others:
        return ChatTemplates(default, others)
    if len(others) == 1:
        ((name, text),) = others.items()
        return ChatTemplates(text, {}, (f"the only chat template is named {name!r}; it is used as the default",))
    names = listed([repr(name) for name in sorted(others)])
    return ChatTemplates(
        None, others, (f"no chat template is the default ({names} are there), so chats will use plain ChatML",)
    )


def _from_files(folder: Path) -> dict[str, str]:
    """The templates in files: chat_template.jinja is the default, the others lie in additional_chat_templates/."""
    paths = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if path_kind(folder / "chat_template.jinja") != "nothing":
        paths[_DEFAULT] = folder / "chat_template.jinja"
    return {name: read_text(path) for name, path in paths.items()}


def _by_name(stated: Any) -> dict[str, str]:
    """The templates by name, from one template, a table of them, or a list of `{"name": ..., "template": ...}`."""
    if isinstance(stated, str):
        return {_DEFAULT: stated}
    if isinstance(stated, list):
        entries = (entry for entry in stated if isinstance(entry, Mapping))
        stated = {entry.get("name"): entry.get("template") for entry in entries}
    if not isinstance(stated, Mapping):
        return {}
    return {name: text for name, text in stated.items() if isinstance(name, str) and isinstance(text, str)}


def _safe(name: str) -> str:
    """The name with the characters replaced that a metadata key cannot have, as the gguf library does it."""
    return re.sub(r"[^a-z0-9_]", "_", name.lower())
