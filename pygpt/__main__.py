"""``python -m pygpt`` is the command ``pygpt``."""

import sys

from pygpt.cli import main

sys.exit(main())
