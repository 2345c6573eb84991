"""Wire and actor messages, generated from proto/ztna/v1 (run `make proto`)."""
