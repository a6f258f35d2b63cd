"""`python -m distree`: the same as the `distree` command."""

import sys

from distree.apps.cli import main

sys.exit(main())
