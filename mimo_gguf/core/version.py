"""The version of this package, and of the llama.cpp that it is bound to; tests hold every other mention to these."""

# Without `Final`, because importing typing needs longer than importing the whole package.
__version__ = "0.1.0"  # pyproject.toml has the same

LLAMA_CPP_PYTHON = "0.3.36"  # pyproject.toml pins the same
LLAMA_CPP_COMMIT = "0c1e57098"  # of llama.cpp, as in that release; all links to its sources name it
REINSTALL_LLAMA = f"pip install --no-cache-dir --force-reinstall llama-cpp-python=={LLAMA_CPP_PYTHON}"
