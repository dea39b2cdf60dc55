"""A plugin of pytest for `make test-gpu`: on a software GPU a test with many cases is run with its first and its last.

Tests marked `many_passes` are left out there. All are run on a real card, and those of `tests/gpu` everywhere. There a
pass of a tiny model takes 20 to 40 ms, a hundred times as long as on the CPU. What is left makes 37,000 passes.
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
    left_out |= {item for item in items if item.get_closest_marker("many_passes")}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]
