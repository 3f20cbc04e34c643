"""The version, which can be read without the package (`bayeslora_cli.light`)."""

__version__ = "0.1.0"
