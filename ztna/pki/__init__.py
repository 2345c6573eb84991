"""The deployment's own certificate authority and node identities (outermost layer: reads and writes files)."""
