"""Compare models on your own pairs, or on a published set: recall both ways with bootstrap intervals.

    python examples/evaluate_retrieval.py runs/demo --data emoji:twitter --candidates 32
    python examples/evaluate_retrieval.py runs/a runs/b --data flickr30k-cna --format flickr30k-cna --split test

The same on the command line: r2d2 evaluate --task retrieval --two-stage --data … --model A B
"""

import argparse

import modeling_r2d2  # noqa: F401  (registers the Auto classes)
from modeling_r2d2.evaluation.results import markdown_report
from modeling_r2d2.evaluation.runner import evaluate_models
from modeling_r2d2.evaluation.settings import EvaluationSettings


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--data", required=True)
    parser.add_argument("--format")
    parser.add_argument("--split")
    parser.add_argument("--candidates", type=int, help="rank so many of the best; without it pre-ranking alone")
    chosen = parser.parse_args(arguments)
    settings = EvaluationSettings(
        task="retrieval",
        data=chosen.data,
        reading={"format": chosen.format, "split": chosen.split},
        two_stage=chosen.candidates is not None,
        candidates=chosen.candidates,
    )
    print(markdown_report(evaluate_models(settings, chosen.models)))


if __name__ == "__main__":
    main()
