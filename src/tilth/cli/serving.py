"""`tilth serve MODEL`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilth.cli.options import With, import_methods, model_reference


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, a stage of a run, or a Hub id (owner/name).")],
    host: Annotated[str, typer.Option(help="Beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8000,
    token: Annotated[str | None, typer.Option(envvar="TILTH_TOKEN", help="What clients give as their API key.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; its folder's name unless given.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(help="The longest continuation.", min=1)] = 1024,
    max_body: Annotated[int, typer.Option(help="The longest request, in bytes.", min=1)] = 2**20,
    batch: Annotated[int, typer.Option(help="Continuations generated at once.", min=1)] = 32,
    with_: With = None,
) -> None:  # fmt: skip
    """Serve a model as OpenAI's API does: completions, chat, embeddings, streaming. Its guard acts on every path."""
    import_methods(with_)
    from tilth.cli.output import say
    from tilth.serve.server import Limits
    from tilth.serve.server import serve as run

    reference = model_reference(model)
    limits = Limits(body_bytes=max_body, tokens=max_tokens, batch_rows=batch)
    run(reference, name or _called(reference), host=host, port=port, token=token, limits=limits, say=say)


def _called(reference: str) -> str:
    """The folder's name, or its parent's where it is only 'model'; a Hub id as it is."""
    path = Path(reference)
    if not path.is_absolute():
        return reference
    return path.parent.name if path.name == "model" else path.name
