"""Every skipped or failing test of `make peer`, with its reason. Nothing else may be skipped or fail."""

from ledger import Entry

#: Tests that fail by design. One that passes is an error: then its entry goes.
FAILURES: list[Entry] = []

#: Tests that the suite itself skips.
SKIPS: list[Entry] = []
