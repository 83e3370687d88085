"""How the server and its models are now, and the page that shows it."""
