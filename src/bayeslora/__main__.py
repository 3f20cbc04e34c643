"""`python -m bayeslora`, and `accelerate launch -m bayeslora`."""

from bayeslora.cli import main

if __name__ == "__main__":
    main()
