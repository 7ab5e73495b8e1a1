"""`python -m tilth` is `tilth`."""

from tilth.cli import main

main()
