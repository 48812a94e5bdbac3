"""`python -m finepruning`, the same as the `finepruning` command; what `torchrun -m` starts."""

from finepruning.cli import main

if __name__ == "__main__":
    main()
