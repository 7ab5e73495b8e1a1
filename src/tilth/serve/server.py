"""From a model folder to a listening server, and back to an idle machine.

Notable: the port is bound before the model is loaded, so a wrong address costs no wait; on SIGTERM or SIGINT no new
connection is taken, running requests are finished, and the exit status is 0.
"""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable
from contextlib import closing

from tilth.errors import TilthError

try:
    import uvicorn

    from tilth.serve.app import Limits, create_app
except ModuleNotFoundError as error:
    raise TilthError(f"'tilth serve' needs the package '{error.name}'", hint="pip install 'tilth[serve]'") from None
from tilth.serve.guarding import load_to_serve


def serve(
    reference: str, name: str, *, host: str, port: int, token: str | None, limits: Limits, say: Callable[[str], None]
) -> None:
    """Serve a model until told to stop. port 0: any free one; `say` is told which.

    Raises TilthError: a host beyond loopback without a token, an address that cannot be had, a model that cannot be loaded,
    a guard that cannot be applied.
    """
    if not loopback(host) and not token:
        raise TilthError(
            f"'{host}' can be reached from other machines, so a token is needed",
            hint="Set the environment variable TILTH_TOKEN (or give --token), or leave --host at 127.0.0.1.",
        )
    with closing(_listening(host, port)) as listener:
        text_model = load_to_serve(reference)
        app = create_app(text_model, name, token=token or None, limits=limits)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
        # uvicorn sends itself the signal again once it has stopped; that one is not to kill.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        guarded = f", guarded by {text_model.guard.name}" if text_model.guard is not None else ""
        address = f"[{host}]" if ":" in host else host
        say(f"Serving {name}{guarded}: http://{address}:{listener.getsockname()[1]}/v1")
        server.run(sockets=[listener])


def loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        raise TilthError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}", hint="Choose another with --port."
        ) from None
    return listener
