"""The server's own process: signals and its end, the heap, log lines, threads for blocking work."""
