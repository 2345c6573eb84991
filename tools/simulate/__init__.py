"""Whole deployments on a virtual clock, drawn from seeds and watched by invariants; see `__main__.py`."""
