"""Run the command line: ``python -m mpsim``."""

from mpsim.cli import main

if __name__ == "__main__":
    main()
