"""Models on ModelScope (modelscope.cn): one request lists a repository's files with their sizes and SHA-256.

Two things differ from the Hugging Face Hub. An unknown revision is answered with success and no files. And the list may
name the newest commit only by its first digits; the files are then of the branch, and pinned by their digests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from mimo_gguf.conversion.remote.ranges import RangeReader, check_busy, network_errors
from mimo_gguf.conversion.remote.repository import RemoteFile, Repository, parse_digest
from mimo_gguf.core.errors import HubError

ENDPOINT_VARIABLE: Final = "MODELSCOPE_ENDPOINT"
TOKEN_VARIABLE: Final = "MODELSCOPE_API_TOKEN"
_DOMAIN_VARIABLE: Final = "MODELSCOPE_DOMAIN"  # ModelScope's own library reads it
_DOMAIN: Final = "www.modelscope.cn"
_NEWEST: Final = "master"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def modelscope_repository(
    model_id: str, revision: str | None, small_files: Sequence[str], reader: RangeReader
) -> Repository:
    """The repository `model_id` at a branch, tag or commit.

    Args:
        small_files: names of the files, besides weights, that are wanted if they are there.

    Raises:
        HubError: no such repository or revision, no access, or no connection.
    """
    label = f"modelscope:{model_id}" + (f"@{revision}" if revision else "")
    asked = revision or _NEWEST
    listed = _list_files(label, model_id, asked, reader)
    commit = _commit(listed) or asked
    files = {file.name: file for file in _files(listed["Files"], model_id, commit)}

    def list_weights(names: Sequence[str]) -> list[RemoteFile]:
        if missing := [name for name in names if name not in files]:
            raise HubError(f"{label}: has no {missing[0]}", hint="check the name: it may hold another kind of weights")
        return [files[name] for name in names]

    return Repository(
        label=label,
        model_id=model_id,
        commit=commit,
        page=f"https://modelscope.cn/models/{model_id}",
        small_files={name: partial(reader.read, files[name]) for name in small_files if name in files},
        list_weights=list_weights,
    )


def endpoint() -> str:
    """The address of ModelScope; `MODELSCOPE_ENDPOINT` or `MODELSCOPE_DOMAIN` decides."""
    given = os.environ.get(ENDPOINT_VARIABLE)
    return (given or f"https://{os.environ.get(_DOMAIN_VARIABLE) or _DOMAIN}").rstrip("/")


def _headers() -> dict[str, str]:
    """The token, as the API and as older parts of the site want it."""
    token = os.environ.get(TOKEN_VARIABLE)
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


def _list_files(label: str, model_id: str, revision: str, reader: RangeReader) -> Mapping[str, Any]:
    """The `Data` of the list of files."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    url = f"{endpoint()}/api/v1/models/{model_id}/repo/files?Revision={quote(revision, safe='')}&Recursive=true"

    def ask() -> Any:
        with network_errors(label):
            answer = get_session().get(url, headers=_headers(), timeout=reader.timeout_s, follow_redirects=True)
        check_busy(answer)
        return answer

    answer = reader.persist(label, ask)
    if answer.status_code in (401, 403):
        raise HubError(
            f"{label}: access refused ({answer.status_code})",
            hint=f"accept the model's terms on its page, and set {TOKEN_VARIABLE} to a token of yours",
        )
    if answer.status_code == 404:
        raise HubError(
            f"{label}: no such model on ModelScope", hint=f"check the name; set {TOKEN_VARIABLE} if it is private"
        )
    try:
        stated = answer.json()
        data = stated["Data"] if answer.status_code == 200 and stated.get("Code") == 200 else None
    except (ValueError, KeyError, AttributeError, TypeError):
        data = None
    if not isinstance(data, dict):
        raise HubError(
            f"{label}: ModelScope's answer is not a list of files ({answer.status_code})", hint="run it again later"
        )
    if not isinstance(data.get("Files"), list):
        raise HubError(f"{label}: no such revision", hint="leave @revision out for the newest")
    return data


def _commit(listed: Mapping[str, Any]) -> str | None:
    """The commit of the list, if it is stated in full: by itself, or by the file that it changed."""
    newest = listed.get("LatestCommitter")
    if not isinstance(newest, dict):
        return None
    stated, short = str(newest.get("Id") or ""), str(newest.get("ShortId") or "")
    if _COMMIT.fullmatch(stated):
        return stated
    of_files = {str(entry.get("Revision")) for entry in listed["Files"] if isinstance(entry, dict)}
    matching = [commit for commit in of_files if short and _COMMIT.fullmatch(commit) and commit.startswith(short)]
    return matching[0] if len(matching) == 1 else None


def _files(entries: Iterable[Any], model_id: str, commit: str) -> list[RemoteFile]:
    start = f"{endpoint()}/api/v1/models/{model_id}/repo?Revision={quote(commit, safe='')}&FilePath="
    return [
        RemoteFile(
            name=entry["Path"],
            url=start + quote(entry["Path"], safe=""),
            n_bytes=entry["Size"],
            digest=parse_digest(entry.get("Sha256")),
            headers=_headers(),
        )
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("Path"), str) and isinstance(entry.get("Size"), int)
        if entry.get("Type") != "tree" and entry["Size"] >= 0
    ]
