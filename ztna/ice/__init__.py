"""ICE (RFC 8445): candidates, checks, nomination, consent, and the search that drives them."""
