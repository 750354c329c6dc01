"""The command `blockmap registry`."""

import logging
import ssl
from pathlib import Path
from typing import Any

import click

from blockmap.errors import UsageError
from blockmap.host.serve.listening import is_loopback, parse_listen, tcp_socket
from blockmap.local.paths import default_cache, own
from blockmap.local.scratch import scratch
from blockmap.store.key_files import read_trusted
from blockmap.store.opening import open_store
from blockmap.store.repository import Repository
from blockmap.store.signing import Trust
from blockmap.terminal.options import cache_option, need_store, store_option, trust_option
from blockmap.terminal.output import warn

_SPOOL_BYTES = 2 << 30


@click.command()
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:5000", show_default=True, help="Where to answer.")
@click.option(
    "--tls",
    nargs=2,
    type=click.Path(path_type=Path),
    metavar="CERTIFICATE KEY",
    help="Answer by TLS, with these files.",
)
@click.option(
    "--users",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Answer users of this file alone, which `htpasswd -B` writes; docker login names one.",
)
@store_option
@trust_option
@cache_option
def registry(
    listen: str,
    tls: tuple[Path, Path] | None,
    users: Path | None,
    store: str | None,
    trust: tuple[str, ...],
    cache: Path | None,
) -> None:
    """Serve docker, containerd and podman as a registry.

    It has the images of the store.

    An image is given under the manifest that it had where its layers can be made as they were; else under a new one, with the same
    image ID. Nothing is kept here but what is being sent.
    """
    import uvicorn  # imported here, as what follows: half a second that `--help` does without

    from blockmap.registry.access import Passwords
    from blockmap.registry.app import ImageRegistry
    from blockmap.registry.offers import Offers
    from blockmap.registry.served import ServedDigests
    from blockmap.registry.spool import Spool

    host, port = parse_listen(listen)
    passwords = None if users is None else Passwords(users)
    if users is not None and tls is None and not is_loopback(host):
        raise UsageError(
            f"passwords would cross the network to {host} in the clear: give --tls CERTIFICATE KEY as well"
        )
    opened, _ = open_store(need_store(store))
    repository = Repository(opened, Trust(read_trusted(trust)))
    folder = own(cache or default_cache())
    with scratch("registry") as work:
        served = ServedDigests(folder / "registry.db")
        offers = Offers(repository, served, work, warn)
        application = ImageRegistry(repository, offers, served, Spool(work, _SPOOL_BYTES), passwords).application()
        with tcp_socket(host, port) as listening:
            warn(f"docker pull {host}:{port}/NAME gives the images of {opened.url}")
            logging.getLogger("uvicorn").setLevel(logging.ERROR)  # clients that try TLS first are no news
            settings = uvicorn.Config(application, log_config=None, access_log=False, lifespan="off", **_tls(tls))
            uvicorn.Server(settings).run(sockets=[listening])
        served.close()


def _tls(files: tuple[Path, Path] | None) -> dict[str, Any]:
    """Returns uvicorn's settings. UsageError where the files are no certificate and its key."""
    if files is None:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*files)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{files[0]} and {files[1]} are no certificate and its key: {error}") from error
    return {"ssl_certfile": str(files[0]), "ssl_keyfile": str(files[1])}
