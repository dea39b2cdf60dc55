#!/usr/bin/env python3
"""`python convert/hf_to_gguf.py SRC ...` is `mimo-gguf convert SRC ...`, for people used to convert_hf_to_gguf.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mimo_gguf.cli.app import main

if __name__ == "__main__":
    sys.argv[1:1] = ["convert"]
    main()
