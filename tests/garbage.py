"""What strangers send: noise, and what looks like each protocol until it is looked at closely."""

from __future__ import annotations

import random

COOKIE = b"\x21\x12\xa4\x42"
LARGEST_INITIAL_BYTES = 1232


def long_header(chance: random.Random, *, version: int, first_byte: int, token: bytes = b"") -> bytes:
    """A client's first packet, well formed as far as anybody can tell who does not decrypt it."""
    destination, source = chance.randbytes(8), chance.randbytes(8)
    head = bytes([first_byte]) + version.to_bytes(4, "big") + b"\x08" + destination + b"\x08" + source
    head += (0x4000 | len(token)).to_bytes(2, "big") + token + (0x4000 | 1000).to_bytes(2, "big")
    return (head + chance.randbytes(LARGEST_INITIAL_BYTES))[: chance.randint(1200, LARGEST_INITIAL_BYTES)]


def one_of_each(chance: random.Random) -> list[bytes]:
    """A datagram of each kind."""
    stun = b"\x00\x01\x00\x08" + COOKIE + chance.randbytes(12)
    return [
        b"",
        chance.randbytes(chance.randint(1, 1400)),
        long_header(chance, version=1, first_byte=0xC0 + chance.randrange(16)),
        long_header(chance, version=1, first_byte=0xC0, token=chance.randbytes(100)),
        long_header(chance, version=0x1A2A3A4A, first_byte=0xC0),
        long_header(chance, version=0, first_byte=0xC0),
        long_header(chance, version=1, first_byte=0xE0),  # a Handshake packet of nobody
        long_header(chance, version=1, first_byte=0xF0),  # a Retry
        bytes([64 + chance.randrange(64)]) + chance.randbytes(1199),  # a short header
        b"\x00\x01\x00\x00" + COOKIE + chance.randbytes(12),  # a Binding request that is answered
        stun + b"\x00\x03\x00\x04\x00\x00\x00\x06",  # CHANGE-REQUEST, the largest wish
        stun + b"\x7f\x00\x00\x04" + chance.randbytes(4),  # an attribute that has to be understood
        stun + chance.randbytes(8),
        bytes([4 + chance.randrange(12)]) + chance.randbytes(100),  # reserved for relay frames
    ]


def assortment(size: int, seed: int = 1) -> list[bytes]:
    """`size` datagrams of all kinds."""
    chance = random.Random(seed)
    made: list[bytes] = []
    while len(made) < size:
        made += one_of_each(chance)
    return made[:size]
