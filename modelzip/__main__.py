"""`python -m modelzip` is the command `modelzip`."""

from modelzip.cli import main

if __name__ == "__main__":
    main()
