"""Entry point of `python -m clipkit …`, with which torchrun and accelerate start the command line."""

from clipkit.cli import main

if __name__ == "__main__":
    main()
