"""Network block devices with lazy, content-addressed volumes.

A folder is a concern; its `__init__` says what lives there, what it may import, and where its data comes from and goes.
Imports point down the list in setup.cfg. Nine walks through the folders, a line a stop:

    A read that hits
    nbdplugin.plugin        `pread` calls the connection's `read`, and counts
    volume.readonly         which extent: the leaf in memory, a bisect; then preadv from the cache's data file into nbdkit's
                            buffer, and a look at the slot's mark

    A read that misses
    nbdplugin.plugin        `pread`
    volume.readonly         `_read_slowly`: the leaf, from memory or by `fetch`; then what has come with a bundle, what the
                            cache has, what the start's bundle is about to bring
    fetch.fetcher           `get`: one flight for each chunk, however many wait
    fetch.flights           who leads it, who follows
    store.packs             which bytes of which pack; what comes is opened and verified
    origin.ranges           one range of the store, while the gate of outages lets it through
    cache.cache             keeps the chunk, after the reader has got it
    server.start_hydration  brings what is near, and then the rest, to a start that goes on missing (fetch.prefetcher)

    A write to a clone
    nbdplugin.plugin        `pwrite`
    volume.clone            the highest layer: bytes to volume.scratch, the range to its volume.overlay, a note of that to
                            volume.write_journal; a flush makes these durable
    volume.clone_table      the maps of all clones, and what each clone is made of
    server.clones           which clones there are, and which are open

    An open by name
    nbdplugin.session       a connection asks the server for an export
    server.server           which outage policy holds
    server.opener           what this host knows (origin.records), the name's hint and log (store.names), whose signature
                            counts (store.trusted_names), the record of the version; begins the bundle (replay.replays), or
                            reads the first run of nodes (fetch.fetcher)
    server.registry         the volume, shared by all who have it open; the start, one for each version and label
    trace.manager           the connection's reads belong to the start's trace

    A start with a bundle
    replay.replay           asks for the head and for what the cache lacks (replay.plan), in ranges that grow (replay.stream)
    replay.frames           opens and verifies frames as they come (store.packs)
    cache.staging           has them for readers at once, and gives them to the cache when reads pause
    volume.start            what the start spares its reads: read-ahead, neighbours, round trips
    host.warm.warming       brings what the profile lists into the kernel's memory

    An import
    image.sources           an archive, layout, directory or registry, which is asked for the manifest alone (image.skopeo)
    image.standing          the store has the version: its name is moved, and nothing is read
    image.known_layers      lower layers that the store has: their headers are replayed, their contents stay where they are
    image.tar               reads the other layers
    filesystem.merge        the layers' members become one tree, filesystem.ext4.writer its blocks and cuts
    publish.publication     the recipe: chunks and packs (publish.chunks), trees (publish.trees), record, name, derived objects
    publish.dedup_index     what the store has already, and what of it is lost (publish.pack_health)
    store.names             creates the next entry of the name's log
    learn.bundler           bundles of the repository's profiles on the new version

    A collection, and a check of the store
    upkeep.mark             what names stand for and pins hold; which parts of packs trees refer to (upkeep.reach)
    upkeep.collect          what nothing needs is condemned in the log (store.collections), after the grace deleted
    upkeep.rewrite          what is needed of packs that are mostly garbage, or was lost from others, goes to new packs
    upkeep.fsck             the same mark; then packs (upkeep.verify), what is derived (upkeep.derived), logs and hints

    A commit
    cli.commit              asks the server to prepare, freezes what is mounted (host.freezing), and has it captured
    server.clones           a new layer on the clone's others; what is below it is the moment (volume.clone)
    server.commits          has captures published one after another, through restarts; server.node_exchange adds what the cache
                            has of the version below
    commit.publisher        a process of its own: chunks of what was written (publish.dirty), beside the lengths of packs that
                            are relied on; the nodes above; the record, beside the checks of publish.reliance; the entry
    server.server           puts the clone on the new version, and the layers go

    An export
    export.plan             the version that was imported; what of it changed since (export.changes) is one more layer
    export.archives         a layer's headers (format.layer) through the importer's writer again, which says where contents are
    export.contents         the contents, in large ranges and ahead
    export.blobs            the archive is checked, and compressed as it was (image.gzip_tools) as far as that is known
    export.documents        configuration and manifest: those that were, or new ones
    export.destinations     a layout, an archive; image.skopeo for a registry

    An attach
    cli.attach              calls api.devices; scripts call api.host, which does
    host.manager.client     asks the process that attaches, `blockmap devices`, and starts it where none runs (host.manager.manager)
    host.manager.work       a child of that process, for this client alone; in its mount namespace, if need be
    control.client          asks the server which version the name stands for, by control.messages; control.dispatch, in nbdkit's
                            process, answers. Where no server does, the command has it started (api.server,
                            host.serve.supervisor), and asks again
    host.attachments        the record of devices, and the lock of this one
    host.devices.kinds      chooses how the device is made: the kernel's nbd, or nbdfuse where the kernel has none
    host.devices.kernel     connects (host.devices.negotiation), and gives the socket to the kernel (host.devices.netlink), by a
                            device of the pool (host.devices.pool) where there is one
    host.devices.nbdfuse    the other way
    host.mounting           mounts it, while the kernel's memory is warmed
    host.devices.watch      connects the kernel's devices again, for as long as they are there

    A container that goes on when its command has ended
    cli.run                 what docker's options mean (host.run.options); api.detached makes the container's folder
                            (host.run.folders) and starts its monitor
    api.monitor             a process of its own; host.run.runner attaches, mounts, and connects the network (host.run.network)
    host.run.container      what runc is told, from the image's configuration and the options
    host.run.runc           waits for the program; its output goes straight to the log (host.run.streams)
    host.run.watch          says when it is ready, which api.detached waits for
    host.run.containers     stops it later, or runs another program in it
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockmap.api.store import ImageStore as open

__version__ = "0.1.0"
"""The release, as `blockmap --version` prints it."""

__all__ = ["__version__", "open"]


def __getattr__(name: str) -> Any:
    """Returns `open` of the Python API, which is imported when it is used: commands that start something do without."""
    if name != "open":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from blockmap.api.store import ImageStore

    return ImageStore
