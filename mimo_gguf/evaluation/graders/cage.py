"""Runs a program that a model wrote: `python -I -B cage.py PROGRAM LIMITS`, in a folder of its own that it reads alone.

This file imports nothing of the package, because it is started by its path. Before the program's first line it gives
away, for good and for all that it might start:

- time, memory, size of files and number of open files, by the kernel's resource limits;
- the network, other processes, and every change of the file system, by a seccomp filter from libseccomp. The system
  calls below fail with "operation not permitted". Reading files stays possible, but what is read can go nowhere except
  into the program's own output.

A program can lie about its own tests, but not about what it prints: `running.py` compares that elsewhere.
"""

import ctypes
import json
import os
import resource
import sys
from typing import Any

LIBRARY = "libseccomp.so.2"
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | 1  # with EPERM
_EQUAL_UNDER_MASK = 7
_ABSENT = 0x00050000 | 38  # with ENOSYS: the C library then uses the older call, whose arguments a filter can see

# what is refused whatever its arguments are
_REFUSED = """
socket bind connect listen accept accept4 io_uring_setup io_uring_enter io_uring_register
fork vfork execve execveat kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd
ptrace process_vm_readv process_vm_writev kcmp process_madvise
creat truncate rename renameat renameat2 unlink unlinkat rmdir mkdir mkdirat link linkat symlink symlinkat mknod mknodat
chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr setxattrat removexattrat
mount umount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsmount fsconfig mount_setattr
open_by_handle_at name_to_handle_at
unshare setns setrlimit prlimit64 setpriority sched_setattr sched_setscheduler
bpf perf_event_open userfaultfd keyctl add_key request_key memfd_create memfd_secret
shmget shmat msgget semget mq_open reboot swapon swapoff init_module finit_module delete_module kexec_load
sethostname setdomainname settimeofday clock_settime adjtimex clock_adjtime acct quotactl syslog
"""
_WRITING = (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_RDWR)
_CLONE_THREAD = 0x10000


class _Comparison(ctypes.Structure):
    """What a filter compares: an argument's number, how, and with which values."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def close_cage(limits: dict[str, int]) -> None:
    """Sets the limits and loads the filter.

    Raises:
        OSError: this system has no seccomp, or libseccomp is missing.
    """
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    seccomp = ctypes.CDLL(LIBRARY)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rule = seccomp.seccomp_rule_add_array
    rule.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Comparison)]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    context = seccomp.seccomp_init(_ALLOW)
    for name in _REFUSED.split():
        _add(seccomp, context, _REFUSE, name)
    for name, at in (("open", 1), ("openat", 2)):
        for mode in _WRITING:
            _add(seccomp, context, _REFUSE, name, (at, os.O_ACCMODE, mode))
        for flag in (os.O_CREAT, os.O_TRUNC):
            _add(seccomp, context, _REFUSE, name, (at, flag, flag))
    _add(seccomp, context, _REFUSE, "clone", (0, _CLONE_THREAD, 0))  # threads may be, processes not
    for name in ("clone3", "openat2"):
        _add(seccomp, context, _ABSENT, name)
    if not context or seccomp.seccomp_load(context):
        raise OSError("the kernel takes no seccomp filter")


def _add(seccomp: Any, context: Any, action: int, name: str, comparison: tuple[int, int, int] | None = None) -> None:
    """Adds a rule for a system call. One that this machine's kernel or library does not know needs none."""
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number == -1:
        return
    compared = (_Comparison * 1)()
    if comparison is not None:
        at, mask, value = comparison
        compared[0] = _Comparison(at, _EQUAL_UNDER_MASK, mask, value)
    failed = seccomp.seccomp_rule_add_array(context, action, number, int(comparison is not None), compared)
    if failed and number >= 0:
        raise OSError(f"seccomp has no rule for {name}")


def main() -> None:
    """Reads the program, closes the cage, and runs it as `__main__`. At its end it says so in the file `told`."""
    path, limits = sys.argv[1:]
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not needed for one file
        text = file.read()
    end = open("told", "w", encoding="utf-8")  # noqa: PTH123, SIM115 - nothing can be opened for writing later
    try:
        close_cage(json.loads(limits))
    except OSError as error:
        print(f"no cage: {error}", file=end, flush=True)
        sys.exit(1)
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.argv = [path]
    try:
        exec(compile(text, "program.py", "exec"), names)
    finally:
        sys.stdout.flush()
    print("came to its end", file=end, flush=True)


if __name__ == "__main__":
    main()
