"""Entry point of the console script and of `python -m mimo_gguf`: small, so that Ctrl-C is heard from the beginning."""

import os

try:
    import signal
except KeyboardInterrupt:
    os._exit(130)


def main() -> None:
    """Runs the command line. While it is being imported Ctrl-C ends the process at once: an exception there would come
    with a traceback, or be lost in one of the import system's callbacks."""
    hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a background job does not
    if hears:
        signal.signal(signal.SIGINT, _leave)
    from mimo_gguf.cli import app

    app.main(_hear if hears else None)


def _hear() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
