"""`python -m clipkit …`, which is what torchrun and accelerate launch start."""

from clipkit.cli import main

if __name__ == "__main__":
    main()
