"""STUN: message codec, integrity and the Binding responder (RFC 8489, ICE attributes of RFC 8445)."""
