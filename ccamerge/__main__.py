"""``python -m ccamerge`` is the command ``ccamerge``."""

import sys

from ccamerge.cli import main

if __name__ == "__main__":
    sys.exit(main())
