"""`python -m curate`: for launchers that start modules."""

from curate.cli import main

if __name__ == "__main__":
    main()
