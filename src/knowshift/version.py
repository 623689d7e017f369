"""The version of this package: what records and provenance files say."""

__version__ = "0.1.0"
