"""`python -m proxy` is `headrace`."""

from proxy.cli import main

main()
