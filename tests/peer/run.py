"""`make peer`: runs the common test suites of the installed transformers against the R2D2 classes.

The suites (model, configuration and processor test mixins) are in the library's source distribution on PyPI.
It is fetched here at run time, in the very version that is installed, into `.cache/peer`; none of it is kept in
this repository. What the distribution lacks of the suites' imports is supplied by the stubs below.

Every test that is skipped or fails must be on the list in `reasons.py`, with its reason; the run fails when one
is not, when a listed one passes, and when an entry matches nothing any more. Arguments go to pytest
(`make peer ARGS="-k sdpa"`); with arguments, entries that match nothing are not complained about.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "peer"

#: What the suites import and the source distribution does not hold: path -> content.
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    # arguments that every configuration takes, none at its default
    "tests/utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "return_dict": False,\n'
        '    "output_hidden_states": True,\n'
        '    "output_attentions": True,\n'
        '    "dtype": "float16",\n'
        '    "chunk_size_feed_forward": 3,\n'
        '    "architectures": ["SomeModel"],\n'
        '    "id2label": {0: "no", 1: "yes", 2: "unsure"},\n'
        '    "label2id": {"no": 0, "yes": 1, "unsure": 2},\n'
        '    "problem_type": "regression",\n'
        "}\n"
    ),
    # names of media files that only processors of video and audio read
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch_suite(library_version: str) -> Path:
    """The folder that holds the library's `tests` package, downloaded on first use."""
    suite = CACHE / f"transformers-{library_version}"
    if (suite / "tests" / "test_modeling_common.py").exists():
        return suite
    download = CACHE / "download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--dest", str(download)]
    subprocess.run([*command, f"transformers=={library_version}"], check=True)
    with tarfile.open(download / f"transformers-{library_version}.tar.gz") as archive:
        prefix = f"transformers-{library_version}/tests/"
        members = [m for m in archive.getmembers() if m.isfile() and m.name.startswith(prefix)]
        archive.extractall(CACHE, members, filter="data")
    shutil.rmtree(download)
    return suite


def write_stubs(suite: Path):
    """The stubs, beside the library's tests; a file of the library itself is never replaced."""
    for name, content in STUBS.items():
        path = suite / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def main(arguments: list[str]) -> int:
    library_version = version("transformers")
    suite = fetch_suite(library_version)
    write_stubs(suite)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HOME=str(CACHE / "hf"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # for the test processes too: first the library's `tests` package, then the modules of this folder
    os.environ["PYTHONPATH"] = os.pathsep.join([str(suite), str(HERE)])
    sys.path[:0] = [str(suite), str(HERE)]

    import pytest
    from ledger import Ledger

    ledger = Ledger(complete=not arguments)
    options = ["-q", "-n", "2", "-p", "no:cacheprovider", "--no-header", "--tb=short", "--import-mode=prepend"]
    options += ["-c", str(HERE / "pytest.ini"), f"--rootdir={HERE}", "-W", "ignore", str(HERE)]
    pytest.main([*options, *arguments], plugins=[ledger])
    print(f"\ntransformers {library_version}, its own common tests")
    failed = ledger.report()
    if os.environ.get("DIFFUSERS_SRC") and not arguments:  # see diffusers_suite/run.py
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, str(HERE / "diffusers_suite" / "run.py")]
        failed |= int(subprocess.run(command, env=environment).returncode != 0)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
