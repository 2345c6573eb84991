"""Zero-Trust Network Access whose traffic goes peer to peer.

The packages below this one are sans-IO cores: they are handed bytes and the time, and hand back bytes and
events. `ztna.cli` and `ztna.pki` are the outermost layer and may do I/O.
"""

__version__ = "0.1.0"
