"""The relay: channels, per-session queues and the forwarding table."""
