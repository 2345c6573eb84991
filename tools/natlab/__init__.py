"""NAT lab: sites behind real netfilter NATs, in network namespaces of one machine. See docs/natlab.md."""
