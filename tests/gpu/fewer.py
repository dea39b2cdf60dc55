"""A plugin of pytest for `make test-gpu`: on a software GPU, a test with many cases is run with its first and its last.

Not those of `tests/gpu`, and everything on a real card. A pass of a tiny model takes a software GPU a hundred times as
long as the CPU, and the engine's, the runtime's and the server's tests make a hundred thousand of them.
"""

from __future__ import annotations

import pytest

from tests.devices import on_software_gpu


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not on_software_gpu():
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out = {item for name, several in cases.items() if not name.startswith("tests/gpu/") for item in several[1:-1]}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
