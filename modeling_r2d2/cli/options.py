"""Options that several verbs share."""

from typing import Annotated

import typer


def _trust(context: typer.Context, value: bool) -> bool:
    if value:
        from ..loading import trusting_remote_code

        context.with_resource(trusting_remote_code())
    return value


TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        callback=_trust,
        help="Run code that a model, tokenizer or processor brings in its folder; without it none runs.",
    ),
]
"""For every verb that loads a model: within the verb, `modeling_r2d2.loading` trusts what it loads."""

__all__ = ["TrustRemoteCode"]
