"""The `ztna` command: the outermost layer and only entry point."""
