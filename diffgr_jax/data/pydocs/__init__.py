"""The embedded corpus: docstrings of the running Python's standard library."""
