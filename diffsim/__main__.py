"""``python -m diffsim`` is ``diffsim``."""

from diffsim.cli import main

main()
