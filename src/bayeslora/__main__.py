"""`python -m bayeslora`, and `accelerate launch -m bayeslora`."""

from bayeslora_cli.main import main

if __name__ == "__main__":
    main()
