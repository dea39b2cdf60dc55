"""llama.cpp's log and stderr, from wherever they come at once."""

from __future__ import annotations

import os
import threading

from mimo_gguf.llama.log import LogRing, kept_from_stderr


def test_what_is_logged_while_a_line_is_taken() -> None:
    """A finalizer that frees a model may run anywhere, and llama.cpp logs that."""
    ring = LogRing()

    class Frees:
        def write(self, text: str) -> None:
            if text != "freed\n":
                ring.write(4, "freed\n")

        def flush(self) -> None:
            pass

    ring.copy_to = Frees()
    writes = threading.Thread(target=ring.write, args=(4, "a\n"), daemon=True)
    writes.start()
    writes.join(10)
    assert not writes.is_alive() and ring.lines() == ["freed", "a"]


def test_stderr_comes_back_though_two_threads_keep_it() -> None:
    before, first, second = os.fstat(2), threading.Event(), threading.Event()

    def keep(begun: threading.Event, until: threading.Event) -> None:
        with kept_from_stderr():
            begun.set()
            until.wait(0.2)

    threads = [threading.Thread(target=keep, args=pair) for pair in ((first, second), (second, threading.Event()))]
    threads[0].start()
    first.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert os.path.samestat(before, os.fstat(2))
