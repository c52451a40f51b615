"""`python -m vaentropy` is the command `vaentropy`."""

import sys

from vaentropy.cli import main

if __name__ == "__main__":
    sys.exit(main())
