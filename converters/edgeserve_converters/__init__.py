"""edgeserve's own converters, one file per conversion; plug-ins like anybody's."""
