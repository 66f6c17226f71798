"""``python -m steppe``: for launchers that start modules, as ``torchrun -m steppe train ...`` does."""

from steppe.cli import main

if __name__ == "__main__":
    main()
