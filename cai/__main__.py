"""`python -m cai` is the `cai` command."""

import sys

from cai.cli import main

sys.exit(main())
