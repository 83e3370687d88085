"""The server: bundles over HTTP on the device they run on."""
