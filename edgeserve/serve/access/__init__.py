"""Who may do what: keys and roles, TLS, addresses."""

from typing import Final

# The default address: 127.0.0.1 and, where there is IPv6, ::1.
LOCALHOST: Final = "localhost"
