"""Who may do what: keys and roles, TLS, addresses."""
