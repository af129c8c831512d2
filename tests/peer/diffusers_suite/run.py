"""diffusers' own common pipeline tests, and its tests of LoRA, against `R2D2TextToImagePipeline`.

Part of `make peer` where `DIFFUSERS_SRC` names a checkout of diffusers: the tests are in no distribution of it, and
none of it is kept in this repository.

    DIFFUSERS_SRC=/path/to/diffusers make peer

Outcomes are judged as those of the transformers suites, by `reasons.py` in this folder. A process of its own, as
both libraries call their tests `tests`.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEEDED = [Path("tests/pipelines/testing_utils") / name for name in ("common.py", "lora.py")]


def main(arguments: list[str]) -> int:
    source = Path(os.environ["DIFFUSERS_SRC"]).resolve()
    missing = [str(path) for path in NEEDED if not (source / path).is_file()]
    if missing:
        print(f"DIFFUSERS_SRC={source} has no {missing}: it must name a checkout of diffusers {version('diffusers')}")
        return 1
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # the checkout's `tests`, but not its `src`: the installed version is what is tested
    sys.path[:0] = [str(source), str(HERE), str(HERE.parent)]

    import pytest
    from ledger import Ledger

    ledger = Ledger(complete=not arguments)
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=short", "--import-mode=prepend"]
    options += ["-c", str(HERE.parent / "pytest.ini"), f"--rootdir={HERE}", "-W", "ignore"]
    pytest.main([*options, str(HERE / "pipeline_suite.py"), *arguments], plugins=[ledger])
    print(f"\ndiffusers {version('diffusers')}, its own common pipeline and LoRA tests from {source.name}")
    return ledger.report()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
