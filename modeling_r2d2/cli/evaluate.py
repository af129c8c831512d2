"""`r2d2 evaluate`: one or several models on a data set."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Encoding, ImageColumn, MaxPixels, TextColumn, TrustRemoteCode, columns_of
from .terminal import Terminal


def evaluate(
    more_models: Annotated[list[str] | None, typer.Argument(help="Further models: --model A B C.")] = None,
    task: Annotated[str, typer.Option(help="retrieval, matching, classification or captioning.")] = "retrieval",
    data: Annotated[str, typer.Option(help="Pairs, a folder of classes, or emoji:VENDOR.")] = ...,
    model: Annotated[list[str] | None, typer.Option(help="Folder of a model; several for one table.")] = None,
    format: Annotated[str | None, typer.Option(help="icm, flickr30k-cna, chinese-clip, coco-cn, …")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a published set or a folder.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Relative picture paths begin here.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
    label: Annotated[str | None, typer.Option(help="matching: column of labels in files of your own.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the data in reports; 'MUGE', 'Flickr30k-CN' … print published figures.")
    ] = None,
    two_stage: Annotated[bool, typer.Option(help="retrieval: rank the best candidates too.")] = False,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="k of --two-stage; default 128, ICR and IQR 64.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="matching: a list by `r2d2 data matching-pairs`.")] = None,
    labels: Annotated[Path | None, typer.Option(help="classification: lines `folder<TAB>中文名`.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="classification: templates with {}, one a line.")] = None,
    captions: Annotated[Path | None, typer.Option(help="captioning: judge this file instead of a model.")] = None,
    output: Annotated[
        Path, typer.Option(help="Folder of the reports (JSON, Markdown) and kept results; or one file, NAME.json.")
    ] = Path("runs/evaluation"),
    cache: Annotated[bool, typer.Option(help="Take results that are kept, and keep new ones.")] = True,
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0: no intervals.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    device: Device = "cpu",
    max_error_rate: Annotated[float, typer.Option(help="Refuse data of which a larger share is bad.")] = 0.01,
    max_pixels: MaxPixels = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Evaluate models: a table with bootstrap intervals, as text, JSON and Markdown; published figures apart."""
    from ..evaluation.results import is_report_file, markdown_report, refuse_foreign_report, write_report
    from ..evaluation.runner import evaluate_models
    from ..evaluation.settings import EvaluationSettings
    from ..evaluation.zero_shot import PROMPTS, read_prompts
    from ..inference.bootstrap import Bootstrap

    reading = {
        "format": format,
        "split": split,
        "image_root": image_root,
        "columns": columns_of(image_column, text_column, label),
        "encoding": encoding,
        "max_error_rate": max_error_rate,
    }
    if prompts is not None and task != "classification":
        raise ValueError(f"prompts belong to the task classification, not to {task}")
    settings = EvaluationSettings(
        task=task,
        data=data,
        reading=reading,
        name=name,
        two_stage=two_stage,
        candidates=candidates,
        pairs=pairs,
        prompts=PROMPTS if prompts is None else read_prompts(prompts),
        labels=labels,
        captions=captions,
        batch_size=batch_size,
        bootstrap=Bootstrap(resamples, confidence, seed),
        device=device,
    )
    notes = Terminal(stderr=True)
    refuse_foreign_report(output, settings.task, settings.data_name)
    models = [*(model or []), *(more_models or [])]
    kept = output / "cache" if cache and not is_report_file(output) else None
    results = evaluate_models(settings, models, kept, notes.print)
    plain, table = write_report(results, output)
    Terminal().print(markdown_report(results))
    notes.print(f"written: {plain}, {table}")
