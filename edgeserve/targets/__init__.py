"""Targets: the hardware to run on, one TOML file each."""
