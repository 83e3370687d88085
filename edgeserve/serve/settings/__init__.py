"""Every setting of the server and of a model, and where they are read from."""
