"""The memory limits of this process's control groups, such as a container's or a systemd slice's. Linux only.

https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.high, memory.current, memory.stat),
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_PROCESS: Final = Path("/proc/self/cgroup")
_ROOT: Final = Path("/sys/fs/cgroup")
_UNLIMITED: Final = 1 << 60  # bytes; version 1 writes "no limit" as a number near 2**63
# Version -> (files of the limits, file of the use, prefix in memory.stat of sums that include the groups below).
_FILES: Final = {
    2: (("memory.max", "memory.high"), "memory.current", ""),
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_"),
}


def memory_limits(process: Path = _PROCESS, root: Path = _ROOT) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of this process's control group and of every group above it.

    Pages of files count as droppable: the kernel drops them before it refuses memory.
    """
    found = (_read_group(folder, version) for version, folder in _groups(process, root))
    return [limit for limit in found if limit is not None]


def _groups(process: Path, root: Path) -> Iterator[tuple[int, Path]]:
    """The (version, folder) of each group, the innermost first. A container may see its own group as the root."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version, mounts = (1, [root / "memory"]) if controllers else (2, [root, root / "unified"])
        inside = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for mount in mounts:
            for group in (inside, *inside.parents):
                yield version, mount / group


def _read_group(folder: Path, version: int) -> tuple[int, int] | None:
    limit_names, used_name, prefix = _FILES[version]
    texts = [(folder / name).read_text().strip() for name in limit_names if (folder / name).is_file()]
    limits = [int(text) for text in texts if text.isdigit() and int(text) < _UNLIMITED]
    if not limits:
        return None
    try:
        used = int((folder / used_name).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    droppable = sum(int(statistics.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
    return min(limits), max(used - droppable, 0)
