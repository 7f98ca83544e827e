"""``python -m gfn_runner``."""

from gfn_runner.app import main

if __name__ == "__main__":
    main()
