"""TCP and UDP services carried by one session: streams, flows, fragments, credit."""
