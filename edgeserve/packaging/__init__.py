"""Device packages: the least that must travel to the device."""

from edgeserve.packaging.folder import DevicePackage, PackageOptions, PackagePart, package

__all__ = ["DevicePackage", "PackageOptions", "PackagePart", "package"]
