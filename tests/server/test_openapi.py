"""The OpenAPI document says what the server does: its paths, its bodies, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from mimo_gguf.server.app import make_app
from mimo_gguf.server.openapi import ENDPOINTS, FILE_ENDPOINTS, openapi_document
from mimo_gguf.server.page.files import FILES
from tests.server.serving import Serving


@pytest.mark.parametrize("keeps_files", [False, True])
def test_every_path_is_in_the_document(server: Serving, tmp_path: Path, keeps_files: bool) -> None:
    """The page's own paths are left out: nothing but the page asks for them."""
    settings = replace(server.settings, files_dir=tmp_path if keeps_files else None)
    routes = [route for route in make_app(server.models, settings).routes if isinstance(route, Route)]
    routes = [route for route in routes if route.path not in FILES and not route.path.startswith("/page/")]
    served = {(method, route.path.replace(":path", "")) for route in routes for method in route.methods or ()}
    endpoints = ENDPOINTS + (FILE_ENDPOINTS if keeps_files else ())
    assert {(each.method, each.path) for each in endpoints} == {each for each in served if each[0] != "HEAD"}


def test_the_document_is_whole(server: Serving) -> None:
    document = server.get("/openapi.json").json()
    assert document == openapi_document("mimo-tiny") and document["openapi"].startswith("3.1")
    with_files = openapi_document("mimo-tiny", keeps_files=True)
    assert len(with_files["paths"]) == len(document["paths"]) + 6
    check_whole(with_files)
    check_whole(document)


def check_whole(document: Any) -> None:
    """Every reference leads somewhere, every name of a path is described, and every operation says what it gives."""

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            here = [value["$ref"]] if "$ref" in value else []
            return here + [each for inner in value.values() for each in references(inner)]
        return [each for inner in value for each in references(inner)] if isinstance(value, list) else []

    names = {name.rpartition("/")[2] for name in references(document)}
    assert names <= set(document["components"]["schemas"]) and len(names) > 20
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"] and "200" in operation["responses"], path
            named = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))
