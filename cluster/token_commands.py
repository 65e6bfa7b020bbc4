"""`python -m cluster token ...`: make, list and revoke the API's bearer tokens. A token is shown once, when it is
made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachewarden.errors import SettingsError
from cachewarden.settings import load_settings
from serve.security import SCOPES, create_token, list_tokens, revoke_token

__all__ = ["add_token_commands"]

_StateDir = Annotated[Path | None, typer.Option(help="Where tokens.json lies; STATE_DIR without it.")]


def _directory(state_dir: Path | None) -> Path:
    return state_dir or load_settings().state_dir


def add_token_commands(app: typer.Typer) -> None:
    """Put the commands onto `app`."""

    @app.command("create")
    def create(
        name: Annotated[str, typer.Argument(help="Who will use it; the author of what it proposes.")],
        scope: Annotated[list[str], typer.Option(help=f"One or more of {', '.join(SCOPES)}.")],
        state_dir: _StateDir = None,
        subject: Annotated[
            str | None, typer.Option(help="Who holds it, if that is not its name; all his tokens are one identity.")
        ] = None,
    ) -> None:
        """Make a token and print it; only its hash is kept."""
        unknown = sorted(set(scope) - set(SCOPES))
        if unknown:
            raise SettingsError(f"unknown scope `{unknown[0]}`, known are {', '.join(SCOPES)}")
        typer.echo(create_token(_directory(state_dir), name, tuple(s for s in SCOPES if s in scope), subject))

    @app.command("list")
    def show(state_dir: _StateDir = None) -> None:
        """List names, scopes and holders."""
        for token in list_tokens(_directory(state_dir)):
            of = "" if token.subject is None else f"\tof {token.subject}"
            typer.echo(f"{token.name}\t{', '.join(sorted(token.scopes))}{of}")

    @app.command("revoke")
    def revoke(name: Annotated[str, typer.Argument(help="Name of the token.")], state_dir: _StateDir = None) -> None:
        """Make a token worthless at once."""
        known = revoke_token(_directory(state_dir), name)
        typer.echo(f"token `{name}` revoked" if known else f"no token is called `{name}`")
        raise typer.Exit(0 if known else 1)
