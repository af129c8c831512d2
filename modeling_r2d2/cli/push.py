"""`r2d2 push`: a model folder to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .terminal import Terminal


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
    console = Terminal()
    table = console.table("bytes", "file", title=f"{model} → {repo}")
    table.columns[0].justify = "right"
    for name, size in plan.files.items():
        table.add_row(f"{size:,}", name)
    table.add_section()
    table.add_row(f"{plan.total:,}", f"{len(plan.files)} files")
    console.print_table(table)
    lines = [f"left out: {name} ({reason})" for name, reason in plan.left_out.items()]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    for line in lines:
        console.print(line)
    if plan.problems:
        raise PushRefusedError(model, plan.problems)
    if dry_run:
        console.print("dry run: nothing was sent")
        return
    commit = push_folder(
        model, repo, private=private, message=message, revision=revision, create_pr=create_pr, exclude=exclude or ()
    )
    console.print(f"pushed: {commit.pr_url or commit.commit_url}")
