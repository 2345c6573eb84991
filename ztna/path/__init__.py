"""Paths beneath a session's constant peer address, and their selection."""
