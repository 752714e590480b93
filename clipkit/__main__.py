"""`python -m clipkit …`: the command line as torchrun and accelerate launch start it."""

from clipkit.cli import main

if __name__ == "__main__":
    main()
