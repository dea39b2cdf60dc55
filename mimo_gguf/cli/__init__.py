"""The command line: one small module per command, one app, one module that owns the look."""
