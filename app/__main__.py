"""`python -m sfumato.app` is `sfumato`."""

import sys

from .cli import main

sys.exit(main())
