"""Settings of every test: no network, no use of the user's own caches, a fixed seed."""

import os
import tempfile

# Before anything imports a Hugging Face library: these are read once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_cache = tempfile.TemporaryDirectory(prefix="r2d2-tests-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _cache.name  # downloaded modules of trust_remote_code, datasets, evaluate

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# The same cases in every run; `--hypothesis-profile search` draws others, and many.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.register_profile("search", deadline=None, database=None, max_examples=500)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test, whatever ran before it (numpy's and Python's too)."""
    from transformers import set_seed

    set_seed(0)
