"""`r2d2 push`: a model folder to the Hub."""

from dataclasses import dataclass
from pathlib import Path

from ..processing.files.settings import setting
from .options import Checked
from .terminal import Terminal


@dataclass(kw_only=True)
class PushSettings(Checked):
    """What `r2d2 push` takes."""

    model: Path = setting(help="The folder of a model with its card (`r2d2 card`).", argument=True)
    repo: str = setting(help="The repository on the Hub, owner/name. It is made if it is not there.", argument=True)
    dry_run: bool = setting(False, "List every file with its size, and send nothing.")
    private: bool = setting(False, "Make the repository private, if it is made.")
    message: str | None = setting(None, "The message of the commit.")
    revision: str | None = setting(None, "The branch to commit to. The default is main.")
    create_pr: bool = setting(False, "Open a pull request instead of committing.")
    exclude: list[str] = setting([], "A pattern of files that stay behind. It can be repeated.")


def push(settings: PushSettings) -> None:
    """Upload model, code, card and results in one commit; refuses pickles, checkpoints, secrets and invalid cards.

    Logs in as huggingface_hub does (`hf auth login` or HF_TOKEN).
    """
    from ..hub_cards.push import PushRefusedError, check_repo_id, plan_push, push_folder

    check_repo_id(settings.repo)
    plan = plan_push(settings.model, settings.repo, settings.exclude)
    console = Terminal()
    table = console.table("bytes", "file", title=f"{settings.model} → {settings.repo}")
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
        raise PushRefusedError(settings.model, plan.problems)
    if settings.dry_run:
        console.print("dry run: nothing was sent")
        return
    commit = push_folder(
        settings.model,
        settings.repo,
        private=settings.private,
        message=settings.message,
        revision=settings.revision,
        create_pr=settings.create_pr,
        exclude=settings.exclude,
    )
    console.print(f"pushed: {commit.pr_url or commit.commit_url}")
