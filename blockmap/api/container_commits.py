"""Makes versions of what containers have become, whichever engine runs them."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from blockmap.api.clones import CloneHost, Commit
from blockmap.control.messages import Resolve
from blockmap.errors import BlockmapError, NotFound
from blockmap.format.refs import parse_name
from blockmap.host import tools
from blockmap.host.engines import OverlayContainer, find_container, own_container, sync
from blockmap.host.overlay_upper import apply_upper
from blockmap.host.run import folders, runner

_log = logging.getLogger(__name__)


class ContainerCommits(CloneHost):
    """This host with its containers, among them those of docker and podman."""

    def commit_container(
        self,
        container: str,
        name: str,
        *,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        force: bool = False,
        pause: bool = True,
    ) -> Commit:
        """Makes `name` stand for what a container is now: its image, with what the container wrote, which alone is read.

        `container` is one of `run`, docker or podman, by ID or name; `docker:NAME` asks that engine alone. The store has the image,
        found by the digest of its configuration, which the version keeps but for `changes`; a clone that a container runs on is
        committed itself. The container is paused while what it wrote is read, unless `pause` is False. Arguments and errors are
        those of `commit`; NotFound where there is no such container, or the store lacks its image. Needs root.
        """
        tools.need_root("commit --container")
        repo, _ = parse_name(name)
        runs = runner.runs_of(self.state)
        own = folders.find(runs, container) if folders.is_taken(runs, container) else None
        if own is None:
            found = find_container(container)
        else:
            mounted = self.attachments.at(str(own / "image"))
            if mounted is not None and "@" not in mounted.export:
                clone = mounted.export.partition("+")[0]
                return self.commit(clone, name, message=message, author=author, changes=changes, force=force)
            found = own_container(own, mounted)
        image = self._image_of(found, repo)
        with self._copy_of(image, found) as clone:
            with tempfile.TemporaryDirectory(prefix="blockmap-commit-") as folder:
                self.attach(clone, folder)
                try:
                    with found.paused() if pause else nullcontext():
                        sync(found.upper)
                        apply_upper(found.upper, Path(folder), user_attributes=found.user_attributes)
                finally:
                    self.detach(folder)
            return self.commit(clone, name, message=message, author=author, changes=changes, force=force)

    def _image_of(self, container: OverlayContainer, repo: str) -> str:
        """Returns the export name of a container's image by the version's digest; NotFound with what to do."""
        try:
            return self.server().ask(Resolve(f"{repo}@{container.digest}")).export
        except NotFound as error:
            raise NotFound(
                f"the store has no image {container.digest}, of which {container.engine} made {container.id[:12]}: import it "
                f"first, with `{container.engine} save {container.image} | blockmap import docker-archive:- NAME`"
            ) from error

    @contextmanager
    def _copy_of(self, image: str, container: OverlayContainer) -> Iterator[str]:
        """Makes a clone of an image for as long as the block runs; it stays where something of it is still to be published."""
        clone = f"commit-{container.id[:12]}-{os.getpid()}"
        self.clone(image, clone)
        try:
            yield clone
        finally:
            try:
                self.rm(clone)
            except BlockmapError as error:
                _log.warning("the clone %s stays: %s", clone, error)
