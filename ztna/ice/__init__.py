"""ICE (RFC 8445): the values and the agreed times of the direct path. Nothing drives them yet."""
