"""Stored responses: the newest stay, those unused for longest go, and memory is bounded."""

from __future__ import annotations

import pytest

from mimo_gguf.server.failures import Refused
from mimo_gguf.server.response_store import ResponseStore, Stored


def stored(name: str, text: str = "") -> Stored:
    return Stored({"id": name}, ({"id": "item"},), ({"role": "user", "content": text},))


def test_the_number_is_bounded() -> None:
    store = ResponseStore(n_most=2)
    store.put(stored("a"))
    store.put(stored("b"))
    assert store.get("a").document == {"id": "a"}
    store.put(stored("c"))
    with pytest.raises(Refused):
        store.get("b")
    assert store.conversation("a") and store.conversation(None) == ()


def test_the_memory_is_bounded() -> None:
    store = ResponseStore(characters_most=1000)
    for number in range(100):
        store.put(stored(str(number), "x" * 300))
    here = []
    for number in range(100):
        try:
            here.append(store.get(str(number)).document["id"])
        except Refused:
            continue
    assert here == ["98", "99"]
    store.put(stored("large", "x" * 2000))
    assert store.get("99"), "what is larger than everything drives nothing out"
    store.remove("99")
    store.remove("98")
    store.put(stored("new", "x" * 900))
    assert store.get("new")


def test_what_is_not_here() -> None:
    store = ResponseStore()
    for look in (store.get, store.remove):
        with pytest.raises(Refused) as refused:
            look("x" * 1000)
        assert refused.value.failure.status == 404 and len(refused.value.failure.message) < 200
    with pytest.raises(Refused) as refused:
        store.conversation("x")
    assert refused.value.failure.status == 400
