"""A host that moves a name again and again, and says what became of it: python -m tests.serve.mover URL NAME WHO MOVES CACHE.

Each move is a commit's: it expects the entry that it saw, and looks again when it was told that another was faster.
"""

import json
import sys
from pathlib import Path

from blockmap.errors import NameMoved
from blockmap.format.refs import parse_name
from blockmap.server.server import Server
from blockmap.store.names import EntryDraft, NameLog, NameTarget
from tests.store.made import open_or_create


def main(url: str, name: str, who: str, moves: str, cache: str) -> None:
    repo, tag = parse_name(name)
    store, _ = open_or_create(url)
    log = NameLog(store)
    began = log.newest(repo, tag)
    assert began is not None
    versions = list(log.history(repo, tag))[-2:]
    server = Server(url, Path(cache), 1 << 30)
    server.resolve(name)
    made, told = [], []
    for move in range(int(moves)):
        while True:
            newest, other = log.newest(repo, tag), versions[move % 2]
            draft = EntryDraft(other.version, other.number, other.root, other.run, other.oci, f"{who} {move}")
            try:
                entry = log.append(NameTarget(repo, tag), newest, draft)
            except NameMoved as error:
                told.append(str(error))
                continue
            made.append((entry.n, entry.nonce))
            break
    server.open(name).close()
    server.close()
    print(json.dumps({"made": made, "told": told}))


if __name__ == "__main__":
    main(*sys.argv[1:])
