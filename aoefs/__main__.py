"""``python -m aoefs``."""

import sys

from aoefs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
