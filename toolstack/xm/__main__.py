"""`python -m toolstack.xm`."""

import sys

from toolstack.xm.cli import main

sys.exit(main())
