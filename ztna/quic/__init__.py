"""QUIC as a sans-IO core: the one aioquic adapter, demultiplexing and connection IDs."""
