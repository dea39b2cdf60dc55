"""A tiny trained MiMo (`mimo-tiny/`) and the scripts that make it."""
