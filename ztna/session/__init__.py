"""The end-to-end session as seen by agent and connector: life-cycle, resumption, renewal."""
