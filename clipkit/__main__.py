"""Entry point of `python -m clipkit …`, which torchrun and accelerate launch use to start the command line."""

from clipkit.cli import main

if __name__ == "__main__":
    main()
