"""NAT behaviour (RFC 4787): what it is called, what it allows, how it is discovered."""
