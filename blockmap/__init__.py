"""Network block devices with lazy, content-addressed volumes."""

__version__ = "0.1.0"
