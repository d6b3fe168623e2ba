"""Try a captioner in the browser: `fastcap demo [--model PATH]`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import webbrowser
from ipaddress import ip_address

from fastcap.cli import UserError, one_clear_error, refuse_below_one


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="fastcap demo",
        description="Serve a page that captions pictures, and an HTTP API (/openapi.json); nothing leaves the machine.",
    )
    parser.add_argument("--model", help="exported model or checkpoint (default: the model that comes with FastCap)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve (default: %(default)s, this machine only); there is no log-in, so put a proxy before it",
    )
    parser.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names under which clients may call the server, such as the proxy's; *.example.org for those below it "
        "(default: this machine's own where --host is local, else any)",
    )
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any free one (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the captioner (default: the runtime's choice)")
    parser.add_argument("--max-megabytes", type=float, default=10, help="largest upload (default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser.parse_args(arguments)


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket.

    Raises:
        UserError: If the address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} must be from 0 to 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}") from error


def allowed_hosts(host: str, named: list[str]) -> list[str]:
    """Names under which a server may be called: on this machine alone its own, which keeps DNS rebinding out.

    Raises:
        UserError: If a pattern has a star elsewhere than in front of a domain.
    """
    for name in named:
        if "*" in name.removeprefix("*.") and name != "*":
            raise UserError(f"--allowed-hosts {name}: a star may only stand before a domain, as in *.example.org")
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    own = ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host]
    return [*own, *named] if local or named else ["*"]


def open_browser(url: str) -> None:
    """Show the page, where there is a screen to show it on."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


@one_clear_error
def main(arguments: list[str] | None = None) -> None:
    """Entry point; serves until it is interrupted."""
    options = parse_arguments(arguments)
    if not 0 < options.max_megabytes < float("inf"):
        raise UserError(f"--max-megabytes {options.max_megabytes} must be a number above 0")
    refuse_below_one(options, "threads")
    import uvicorn

    from fastcap.serving.captioner import Captioner
    from fastcap.serving.web import Limits, create_app

    limits = Limits(max_bytes=int(options.max_megabytes * 1e6))
    hosts = allowed_hosts(options.host, options.allowed_hosts)
    with listen(options.host, options.port) as server:
        captioner = Captioner.load(options.model, num_threads=options.threads)
        app = create_app(captioner, limits, hosts)
        url = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{server.getsockname()[1]}"
        print(f"Demo        {url} (Ctrl-C ends it)", flush=True)
        if not options.no_browser:
            open_browser(url)
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=5,
            limit_concurrency=8 * limits.max_waiting,  # open connections, idle ones too
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[server])


if __name__ == "__main__":
    main()
