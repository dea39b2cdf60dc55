"""The table of clients in docs/serve.md names what the tests use, no more and no less."""

from __future__ import annotations

from tests.server.client_table import declared, table, written


def test_the_page_and_the_tests_agree() -> None:
    """Clients that are not installed by default come into the table once their tests have passed."""
    used, page = declared(), written()
    assert {"openai", "anthropic"} <= set(page) <= set(used)
    assert page == {client: used[client] for client in page}, "python -m tests.server.client_table writes the page"


def test_a_table() -> None:
    made = table({"openai": ["chat", "tools"]}, {"openai": "1.2"})
    assert made.splitlines()[2] == "| `openai` | 1.2 | chat, tools |"
