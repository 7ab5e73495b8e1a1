"""Where a plan runs: in this process, or on a Ray cluster.

Notable: Daft can be told once per process; asking for the other engine later is a user's mistake and says so.
"""

from typing import Any
from urllib.parse import urlsplit

import daft
from daft.runners import _get_runner
from daft.runners.runner import Runner

from tilth.errors import TilthError


def use_engine(engine: str) -> None:
    """engine: 'native'; 'ray' (the cluster this process is connected to, else one started here); 'ray://host:port'."""
    wanted = "native" if engine == "native" else "ray"
    if wanted == "ray" and engine != "ray" and not (urlsplit(engine).scheme == "ray" and urlsplit(engine).hostname):
        raise TilthError(f"there is no engine '{engine}'", hint="Use 'native', 'ray' or 'ray://host:port'.")
    running: Runner[Any] | None = _get_runner()
    if running is not None:
        if running.name != wanted:
            raise TilthError(
                f"engine '{engine}' was asked for, but this process already computes with '{running.name}'",
                hint="A process keeps its first engine: start another for this one.",
            )
        return
    if wanted == "native":
        daft.set_runner_native()
        return
    try:
        import ray  # noqa: F401
    except ImportError:
        raise TilthError("engine 'ray' needs the package ray", hint="pip install 'tilth[cluster]'") from None
    try:
        daft.set_runner_ray(address=None if engine == "ray" else engine)
    except ConnectionError as error:
        raise TilthError(f"no Ray cluster answers at {engine}", hint=str(error)) from error
