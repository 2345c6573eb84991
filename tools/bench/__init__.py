"""Benchmarks. Each is a module of this package with a `run() -> dict[str, Any]` and a one-line docstring."""
