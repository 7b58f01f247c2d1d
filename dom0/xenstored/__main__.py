import sys

from dom0.xenstored.main import main

sys.exit(main())
