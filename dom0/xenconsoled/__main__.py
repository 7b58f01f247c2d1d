import sys

from dom0.xenconsoled.main import main

sys.exit(main())
