"""The HTTP server of the data plane: asyncio on llhttp, routes, limits. No framework."""
