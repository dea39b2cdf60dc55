"""Tests of the real model: the pure parts, and with `-m real_model` the built checkpoint."""
