"""The deployment's own certificate authority and node identities; may read and write files."""
