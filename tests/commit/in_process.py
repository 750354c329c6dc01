"""A publisher that runs in the process of whoever asks, and begins anew with each capture."""

from contextlib import closing
from pathlib import Path

from blockmap.commit.publisher import Publisher
from blockmap.commit.task import PublishedCapture, PublishTask
from blockmap.store.opening import open_writer


class InProcess:
    """A CapturePublisher of one host's clones of the store at `url`."""

    def __init__(self, url: str, state: Path) -> None:
        self._url, self._state = url, state

    def prepare(self) -> None:
        """Does nothing: no process is started."""

    def publish(self, task: PublishTask) -> PublishedCapture:
        with closing(Publisher(*open_writer(self._url), self._state, lambda said: None)) as publisher:
            return publisher.publish(task)
