"""`python -m vlt.cli`, as launchers of several processes call it."""

from vlt.cli import main

main()
