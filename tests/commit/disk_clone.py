"""A clone of a small disk image, without a server."""

from contextlib import closing
from pathlib import Path

from blockmap.commit.publisher import Publisher
from blockmap.commit.task import PublishedCapture, PublishTask
from blockmap.format import BLOCK
from blockmap.format.refs import parse_reference
from blockmap.store.directory import DirectoryStore
from blockmap.store.opening import open_writer
from blockmap.store.repository import Repository
from blockmap.store.resolver import find_version
from blockmap.store.signing import Signer
from blockmap.store.volume_reader import stored_reader
from blockmap.upkeep.verify import check_version
from blockmap.volume.clone_table import CaptureDraft, CloneRecord, CloneTable
from blockmap.volume.overlay import Kind
from blockmap.volume.scratch import ScratchFile, layer_file
from tests.image.builder import bulk, import_image

SIZE = 64 * BLOCK
BASE = bulk(1, SIZE // 2) + bytes(SIZE // 2)


class CloneOnDisk:
    """A clone of `disk:1` without a server."""

    def __init__(self, where: Path, base: bytes = BASE) -> None:
        self.store, self.state = where / "store", where / "state"
        (where / "disk").write_bytes(base)
        import_image(self.store, str(where / "disk"), "disk:1", where)
        self.content = bytearray(base)
        self.table = CloneTable(self.state)
        (self.state / "layers").mkdir()
        self.repository = Repository(DirectoryStore(self.store))
        found = find_version(self.repository, parse_reference("disk:1"))
        self.record: CloneRecord = self.table.create("c", "uuid", "disk:1", found.pinned, "", len(base))

    @property
    def top(self) -> int:
        return self.table.layers(self.record)[0][0]

    def write(self, start: int, data: bytes) -> None:
        file = ScratchFile(layer_file(self.state, self.top))
        file.write(data, start)
        file.close()
        self._put(start, start + len(data), Kind.DATA)
        self.content[start : start + len(data)] = data

    def zero(self, start: int, end: int) -> None:
        self._put(start, end, Kind.ZEROS)
        self.content[start:end] = bytes(end - start)

    def _put(self, start: int, end: int, kind: Kind) -> None:
        number, extents = self.table.layers(self.record)[0]
        extents.put(start, end, kind)
        starts, found = extents.take_changed()
        there = {each.start: each for each in found if each is not None}
        self.table.keep(self.record.id, number, list(there.values()), sorted(set(starts) - there.keys()), 0)

    def capture(self, name: str, force: bool = False, nonce: str = "n1", changes: str = "[]") -> int:
        repo, tag = name.split(":")
        draft = CaptureDraft(repo, tag, force, "why", "who", changes, nonce)
        return self.table.push(self.table.add_layer(), self.record.id, self.top, [], [], 0, draft)

    def publish(self, number: int, signer: Signer | None = None) -> PublishedCapture:
        publisher = Publisher(*open_writer(str(self.store)), self.state, lambda said: None, signer)
        with closing(publisher):
            return publisher.publish(PublishTask(number))

    def finish(self, number: int, done: PublishedCapture) -> None:
        (capture,) = [each for each in self.table.captures() if each.id == number]
        self.table.rebase(capture, done.export)
        self.record = self.table.get(self.record.id)

    def bytes(self, export: str) -> bytes:
        found = find_version(self.repository, parse_reference(export))
        assert list(check_version(self.repository, found.version)) == []
        return stored_reader(self.repository, found.root)(0, len(self.content))
