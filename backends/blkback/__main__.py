import sys

from backends.blkback.main import main

sys.exit(main())
