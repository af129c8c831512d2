"""What is evaluated, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..inference.bootstrap import Bootstrap
from ..inference.scoring import SCORE_RULES, ScoreRule
from ..processing.datasets.formats import BENCHMARKS
from ..processing.datasets.named import shown_name
from ..processing.files.digests import digest_of_file
from .matching_pairs import MatchingPairs
from .zero_shot import PROMPTS

Task = Literal["retrieval", "matching", "classification", "captioning"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass
class EvaluationSettings:
    """What to evaluate, and how.

    Args:
        task: of `TASKS`.
        data: what `load_pairs` takes, or a folder of classes (classification).
        reading: options of `load_pairs`.
        name: what the data set is called in reports; a published set's name prints its published figures.
        two_stage: retrieval also with the ranker.
        candidates: k of it, default as the authors' for the set, else 128.
        score: how both stages' evidence is combined, see `TwoStageScore`; None: as each model's configuration says.
        pairs: a saved list of matching pairs.
        prompts: templates of classification.
        labels: file of the classes' names.
        captions: file of captions in place of a model.
        generation: arguments of `generate`.

    Raises:
        ValueError: an unknown task, or a setting of another one.
    """

    task: Task
    data: str
    reading: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    two_stage: bool = False
    candidates: int | None = None
    score: ScoreRule | None = None
    ks: tuple[int, ...] = (1, 5, 10)
    pairs: Path | None = None
    prompts: Sequence[str] = PROMPTS
    labels: Path | None = None
    captions: Path | None = None
    generation: dict[str, Any] = field(default_factory=lambda: {"num_beams": 3, "max_new_tokens": 30})
    batch_size: int = 32
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; use one of {', '.join(TASKS)}")
        if self.two_stage and self.task != "retrieval":
            raise ValueError(f"two_stage belongs to retrieval; {self.task} does not rank candidates")
        if self.score is not None and self.score not in SCORE_RULES:
            raise ValueError(f"score is {self.score!r}; use one of {', '.join(SCORE_RULES)}")
        for name, task in (("pairs", "matching"), ("labels", "classification"), ("captions", "captioning")):
            if getattr(self, name) is not None and self.task != task:
                raise ValueError(f"{name} belongs to the task {task}, not to {self.task}")
        if self.two_stage and self.candidates is None:
            benchmark = BENCHMARKS.get(self.reading.get("format", ""))
            self.candidates = benchmark.candidates if benchmark else 128
        if not self.two_stage and self.candidates is not None:
            raise ValueError("candidates are ranked in the second stage: set two_stage")
        if not self.two_stage and self.score is not None:
            raise ValueError("score is that of the second stage: set two_stage")

    @property
    def data_name(self) -> str:
        """How reports call the data set, and of matching by a list that list, so that two lists stay apart."""
        name = self.name or self._plain_name()
        return name if self.pairs is None else f"{name}, {self.pairs.stem}"

    def _plain_name(self) -> str:
        benchmark = BENCHMARKS.get(self.reading.get("format", ""))
        name = benchmark.title if benchmark and benchmark.name != "chinese-clip" else shown_name(self.data)
        split = self.reading.get("split")
        # COCO-CN and AIC-ICC have one test split that is meant in tables; theirs goes by the set's name
        return name if split in (None, "test") else f"{name} {split}"

    def described(self, model: Any = None) -> dict[str, Any]:
        """All that the figures depend on, but data and model; with the model its own score where none was asked for."""
        values: dict[str, Any] = {"resamples": self.bootstrap.resamples, "confidence": self.bootstrap.confidence}
        values["bootstrap_seed"] = self.bootstrap.seed
        if self.task == "retrieval":
            own = model.config.two_stage_score if self.two_stage and model is not None else None
            values |= {"candidates": self.candidates, "score": self.score or own, "ks": list(self.ks)}
        elif self.task == "matching" and self.pairs is not None:
            about = MatchingPairs.load(self.pairs).about
            values |= {"pairs": digest_of_file(self.pairs), "negatives": about.get("negatives"), "list": about}
        elif self.task == "classification":
            values |= {"prompts": list(self.prompts), "labels": self.labels and digest_of_file(self.labels)}
        elif self.task == "captioning":
            values |= {"captions": digest_of_file(self.captions)} if self.captions else {"generation": self.generation}
        return values
