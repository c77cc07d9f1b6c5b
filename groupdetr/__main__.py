"""``python -m groupdetr``: what ``torchrun -m groupdetr train ...`` starts."""

import sys

from groupdetr.cli.main import main

sys.exit(main())
