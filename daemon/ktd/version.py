"""ktd's version, the single source for the wheel, the API and the hello."""

__version__ = "0.1.0"
