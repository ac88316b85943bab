"""`python -m pipeline` = `afpkd`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
