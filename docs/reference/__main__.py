"""Writes the pages, or checks them."""

import argparse
import sys

from .build import COMMAND, all_pages, out_of_date, write


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="The API reference, docs/api.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a page is out of date")
    made = all_pages()
    if parser.parse_args().check:
        changed = out_of_date(made)
        print(f"out of date: {', '.join(changed)}: run `{COMMAND}`" if changed else "the pages are up to date")
        return 1 if changed else 0
    changed = write(made)
    print(f"written: {', '.join(changed)}" if changed else "the pages are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
