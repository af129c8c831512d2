"""Settings of every test: no network, no use of the user's own caches, a fixed seed."""

import os
import tempfile

# Before anything imports a Hugging Face library: these are read once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_cache = tempfile.TemporaryDirectory(prefix="r2d2-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _cache.name  # downloaded modules of trust_remote_code, datasets, evaluate

import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test, whatever ran before it (numpy's and Python's too)."""
    from transformers import set_seed

    set_seed(0)
