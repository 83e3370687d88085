"""What a server needs of its own process: signals and its end, the heap, log lines, threads for what blocks."""
