"""Who may reach what: identities, revocation, policy and grants."""
