"""A real language model in MiMo's layout, to measure quality on: see README.md in this folder."""
