"""The version, read by the build and by the package without importing anything else."""

__version__ = "0.2.0"
