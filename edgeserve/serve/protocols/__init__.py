"""Wire protocols: bytes to requests and back, nothing else."""
