"""`python -m modeling_r2d2.cli`."""

from . import main

main()
