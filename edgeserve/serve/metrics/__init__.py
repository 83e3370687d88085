"""What is counted, and its renderings: Prometheus, the protocol's statistics, Triton's names."""
