"""The version, which can be read without the package (`bayeslora_cli.light`)."""

__all__ = ["__version__"]

__version__ = "0.1.0"
