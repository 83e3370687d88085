"""The trained model as the user has it: reading it, running it for the first time, what its outputs hold."""
