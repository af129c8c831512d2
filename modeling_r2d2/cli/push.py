"""`r2d2 push`: a model folder to the Hub."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def push(
    model: Annotated[Path, typer.Argument(help="Model folder with its card (`r2d2 card`).")],
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub; made if it is not there.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List every file with its size; send nothing.")] = False,
    private: Annotated[bool, typer.Option(help="Of a repository that is made.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; default main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="As a pull request.")] = False,
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern of files that stay behind; repeatable.")] = None,
) -> None:
    """Upload model, code, card and results in one commit; refuses pickles, checkpoints, secrets and invalid cards.

    Logs in as huggingface_hub does (`hf auth login` or HF_TOKEN).
    """
    from ..hub_cards.push import PushRefusedError, check_repo_id, plan_push, push_folder

    check_repo_id(repo)
    plan = plan_push(model, repo, exclude or ())
    console = Console()
    table = Table("file", "bytes", title=f"{model} → {repo}", title_justify="left")
    table.columns[1].justify = "right"
    table.columns[0].overflow = "fold"
    for name, size in plan.files.items():
        table.add_row(name, f"{size:,}")
    table.add_section()
    table.add_row(f"{len(plan.files)} files", f"{plan.total:,}")
    console.print(table)
    lines = [f"left out: {name} ({reason})" for name, reason in plan.left_out.items()]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if plan.problems:
        raise PushRefusedError(model, plan.problems)
    if dry_run:
        console.print("dry run: nothing was sent")
        return
    commit = push_folder(
        model, repo, private=private, message=message, revision=revision, create_pr=create_pr, exclude=exclude or ()
    )
    console.print(f"pushed: {commit.pr_url or commit.commit_url}", markup=False, soft_wrap=True)
