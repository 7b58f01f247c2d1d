import sys

from backends.netback.main import main

sys.exit(main())
