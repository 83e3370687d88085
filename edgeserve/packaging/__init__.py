"""Device packages: the least that must travel to the device."""

from edgeserve.packaging.folder import Options, Package, Part, package

__all__ = ["Options", "Package", "Part", "package"]
