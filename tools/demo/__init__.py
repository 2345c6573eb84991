"""The main job with real processes: a file and datagrams reach an agent from behind a connector."""
