"""`python -m bayeslora_cli`: the command line without its script, as `torchrun -m` and `accelerate launch -m` want."""

from bayeslora_cli.main import main

if __name__ == "__main__":
    main()
