"""The command line `bayeslora`.

What is imported to parse a call and to say `--help` is light: the package bayeslora, which brings torch and PEFT, comes
before a command runs, or asks for the options of a config class with methods (`bayeslora_cli.light`).
"""
