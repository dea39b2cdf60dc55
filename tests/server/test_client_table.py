"""The table of clients in docs/serve.md names what the tests use, no more and no less."""

from __future__ import annotations

from tests.server.client_table import declared, table, written


def test_the_page_and_the_tests_agree() -> None:
    assert declared() == written(), "python -m tests.server.client_table writes the page"
    assert {"openai", "anthropic"} <= set(written())


def test_a_table() -> None:
    made = table({"openai": ["chat", "tools"]}, {"openai": "1.2"})
    assert made.splitlines()[2] == "| `openai` | 1.2 | chat, tools |"
