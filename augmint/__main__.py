"""`python -m augmint` is `augmint`."""

from augmint.cli import main

if __name__ == "__main__":
    main()
