"""Actors: they carry messages between the sans-IO cores of `ztna` and the outside world."""
