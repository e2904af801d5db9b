"""`python -m control` is `penstock`."""

from control.cli import main

if __name__ == "__main__":
    main()
