"""Which version this is: what every layer may ask, without importing the package's own names."""

__version__ = "0.1.0"
