"""`python -m modeling_r2d2.cli`."""

from . import main

if __name__ == "__main__":
    main()
