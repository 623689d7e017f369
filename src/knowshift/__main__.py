"""`python -m knowshift` is the `knowshift` command."""

from knowshift.cli.app import main

main()
