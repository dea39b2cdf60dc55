"""The OpenAPI document says what the server does: its paths, its bodies, and nothing else."""

from __future__ import annotations

from typing import Any

from starlette.routing import Route

from mimo_gguf.server.app import make_app
from mimo_gguf.server.openapi import ENDPOINTS, openapi_document
from mimo_gguf.server.page.files import FILES
from tests.server.serving import Serving


def test_every_path_is_in_the_document(server: Serving) -> None:
    """The page's own paths are left out: nothing but the page asks for them."""
    routes = [route for route in make_app(server.models, server.settings).routes if isinstance(route, Route)]
    routes = [route for route in routes if route.path not in FILES and not route.path.startswith("/page/")]
    served = {(method, route.path.replace(":path", "")) for route in routes for method in route.methods or ()}
    assert {(each.method, each.path) for each in ENDPOINTS} == {each for each in served if each[0] != "HEAD"}


def test_the_document_is_whole(server: Serving) -> None:
    document = server.get("/openapi.json").json()
    assert document == openapi_document("mimo-tiny") and document["openapi"].startswith("3.1")

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
