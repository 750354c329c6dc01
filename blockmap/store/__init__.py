"""Everything about stores that readers and writers share: objects by URL, verified chunks and records above them, and logs.

`packs` alone knows where packs lie and how frames are encoded, and `pack_logs` where that is now which a pack has lost;
whoever reads a whole tree walks it with `walk`. Imports `format`, `durable` and `errors`. Bytes come from `publish` and go
to `fetch`; what does not match its name gets neither in nor out.
"""
