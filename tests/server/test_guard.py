"""Who may ask: hosts, origins and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.settings import Settings, key_digests, read_settings
from tests.server.serving import SUM, Serving, serving

CHAT = "/v1/chat/completions"
BODY = {"messages": SUM, "max_tokens": 1}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1234", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("192.168.1.5:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[::1", 403),
    ],
)
def test_hosts(server: Serving, host: str, status: int) -> None:
    assert server.get("/v1/models", headers={"host": host}).status_code == status


def test_pages_of_others_may_not_ask(server: Serving, llm: LLM) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://x@y"):
        refused = server.post(CHAT, BODY, headers={"origin": origin})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "forbidden_origin"
        assert "access-control-allow-origin" not in refused.headers
    own = server.post(CHAT, BODY, headers={"origin": server.url})
    assert own.status_code == 200 and own.headers["access-control-allow-origin"] == server.url


@pytest.mark.parametrize("allowed", [("https://app.example",), ("*",)])
def test_an_origin_that_is_allowed(llm: LLM, allowed: tuple[str, ...]) -> None:
    with serving(llm, cors_origins=allowed) as server:
        headers = {"origin": "https://app.example", "access-control-request-headers": "authorization,content-type"}
        before = server.client.options(server.url + CHAT, headers=headers | {"access-control-request-method": "POST"})
        assert before.status_code == 204 and "POST" in before.headers["access-control-allow-methods"]
        assert before.headers["access-control-allow-headers"] == "authorization,content-type"
        answer = server.post(CHAT, BODY, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = server.post(CHAT, BODY, headers={"origin": "https://app.example.evil"})
        assert other.status_code == (200 if allowed == ("*",) else 403)


def test_keys(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# of the team\nsecond-key\n\n  third-key\n")
    keys = key_digests(["first-key"], tmp_path / "keys")
    assert len(keys) == 3
    with serving(llm, api_keys=keys) as server:
        for headers in (
            {"authorization": "Bearer first-key"}, {"authorization": "bearer  second-key"}, {"x-api-key": "third-key"},
        ):  # fmt: skip
            assert server.post(CHAT, BODY, headers=headers).status_code == 200
        wrong: list[dict[str, str]] = [
            {}, {"authorization": "Bearer first-ke"}, {"authorization": "Basic first-key"},
            {"authorization": "first-key"}, {"authorization": "Bearer"}, {"x-api-key": "# of the team"},
            {"x-api-key": ""},
        ]  # fmt: skip
        for headers in wrong:
            refused = server.post(CHAT, BODY, headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        assert server.get("/v1/models").status_code == 401
        assert server.get("/health").status_code == 200
        named = {"host": "mimo.example", "authorization": "Bearer first-key"}
        assert server.get("/v1/models", headers=named).status_code == 200, "a page of a stranger has no key"


def settings(**given: Any) -> Settings:
    plain: dict[str, Any] = {
        "host": "127.0.0.1", "port": 0, "names": ["m", "m"], "n_waiting": 1, "time_s": None, "api_keys": [],
        "api_key_file": None, "insecure": False, "cors_origins": [], "tls_cert": None, "tls_key": None,
    }  # fmt: skip
    return read_settings(**plain | given)


def test_settings_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"host": "0.0.0.0"}, "no key"), ({"host": "::"}, "no key"), ({"host": "example.org"}, "no key"),
        ({"api_keys": [""]}, "a key"), ({"api_keys": ["a b"]}, "a key"), ({"api_keys": ["ä"]}, "a key"),
        ({"api_key_file": tmp_path / "none"}, "No such file"), ({"api_key_file": tmp_path / "empty"}, "no key"),
        ({"port": 70000}, "port"), ({"port": True}, "port"), ({"n_waiting": -1}, "queue"),
        ({"time_s": 0}, "time limit"), ({"time_s": "x"}, "time limit"), ({"time_s": float("nan")}, "time limit"),
        ({"cors_origins": ["example.org"]}, "origin"), ({"cors_origins": ["https://a.b/c"]}, "origin"),
        ({"tls_cert": "x"}, "TLS"), ({"tls_key": "x"}, "TLS"),
    ]  # fmt: skip
    for given, words in wrong:
        with pytest.raises(UsageError, match=words) as caught:
            settings(**given)
        assert caught.value.hint
    assert settings().is_loopback and settings().names == ("m",)
    for host in ("::1", "localhost", "127.0.0.2"):
        assert settings(host=host).is_loopback
    assert not settings(host="0.0.0.0", insecure=True).is_loopback
    assert not settings(host="0.0.0.0", api_keys=["k"]).is_loopback
    assert settings(host="::1", port=5).url == "http://[::1]:5"
