"""Measures on a real GPU what is otherwise computed: `python -m benchmarks.gpu`."""
