"""Signaling cores: framing, attachment, registry and sessions."""
