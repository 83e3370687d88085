"""Device packages: everything a device needs to serve a bundle, nothing more."""

from edgeserve.packaging.folder import DevicePackage, PackageOptions, PackagePart, package

__all__ = ["DevicePackage", "PackageOptions", "PackagePart", "package"]
