"""ICE (RFC 8445): the values and the agreed times of the direct path, and the search for it."""
