"""Entry point of ``python -m gfn_runner``."""

from gfn_runner.cli.main import main

if __name__ == "__main__":
    main()
