"""Limits of control groups, from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimo_gguf.hardware.control_groups import memory_limits

MIB = 1 << 20


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def limits(tmp_path: Path, groups: str) -> list[tuple[int, int]]:
    (tmp_path / "process").write_text(groups)
    return memory_limits(tmp_path / "process", tmp_path / "cgroup")


def test_a_containers_own_root(tmp_path: Path) -> None:
    """Docker and Podman with version 2: the container sees its group as the root, and itself in /."""
    stat = f"anon {200 * MIB}\nfile {700 * MIB}\nactive_file {300 * MIB}\ninactive_file {400 * MIB}\nshmem 0"
    write(tmp_path / "cgroup", memory__max=str(1 << 30), memory__high="max", memory__current=str(950 * MIB))
    write(tmp_path / "cgroup", memory__stat=stat)
    assert limits(tmp_path, "0::/\n") == [(1 << 30, 250 * MIB)]


def test_every_group_above_counts_too(tmp_path: Path) -> None:
    """systemd: a scope without a limit in a slice that has one; MemoryHigh throttles whoever is above, so it counts."""
    root = tmp_path / "cgroup"
    scope = "user.slice/user-1000.slice/run-u7.scope"
    use = {"memory__current": str(3 << 30), "memory__stat": f"inactive_file {1 << 30}"}
    write(root / scope, memory__max="max", memory__high="max", **use)
    write(root / "user.slice/user-1000.slice", memory__max=str(8 << 30), memory__high=str(6 << 30), **use)
    write(root / "user.slice", memory__max=str(12 << 30), memory__high="max", **use)
    write(root, memory__stat="anon 1")  # the root has neither a limit nor a use
    assert limits(tmp_path, f"0::/{scope}\n") == [(6 << 30, 2 << 30), (12 << 30, 2 << 30)]


@pytest.mark.parametrize("inside", ["box", "."])
def test_version_1(tmp_path: Path, inside: str) -> None:
    """Its totals include the groups below. In Docker the path is the host's, and only the mount itself is there."""
    stat = f"inactive_file 4096\ntotal_inactive_file {100 * MIB}\ntotal_active_file {50 * MIB}"
    write(
        tmp_path / "cgroup" / "memory" / inside,
        memory__limit_in_bytes=str(512 * MIB), memory__usage_in_bytes=str(400 * MIB), memory__stat=stat,
    )  # fmt: skip
    if inside == "box":
        write(tmp_path / "cgroup" / "memory", memory__limit_in_bytes="9223372036854771712", memory__stat=stat)
    groups = "9:name=systemd:/x\n4:memory:/box\n2:cpu,cpuacct:/\n0::/\n"
    assert limits(tmp_path, groups) == [(512 * MIB, 250 * MIB)]


def test_a_namespace_that_is_not_above(tmp_path: Path) -> None:
    write(tmp_path / "cgroup", memory__max="1024", memory__current="2048", memory__stat="anon 1")
    assert limits(tmp_path, "0::/../other\n") == [(1024, 2048)]


def test_without_control_groups(tmp_path: Path) -> None:
    assert memory_limits(tmp_path / "none", tmp_path) == [] and limits(tmp_path, "0::/\n4:memory:/a\n") == []
    write(tmp_path / "cgroup", memory__max="1024", memory__current="?", memory__stat="anon 1")
    assert limits(tmp_path, "0::/\n") == []
