"""`python -m causalclipseg`, the same as the command `causalclipseg`."""

from .cli import main

if __name__ == "__main__":
    main()
