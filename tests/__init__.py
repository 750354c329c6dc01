"""The tests, and the helpers that they share.

A folder of tests belongs to the folder of `blockmap` of the same name, and `tests/nbdplugin` to the plugin. The others:

    corpus/   starts of real programs from real images      faults/   the same over links that delay and lose
    guest/    scripts under a kernel of their own           serve/    real servers, real NBD clients
    tools/    the project's tools, and the rules for code and tests

Where a new test goes: into the folder of the module that it tests, in the file that tests this module's neighbours. If it needs a
server, it goes to `serve`, or to `host` if it also attaches or mounts. A test uses real parts; a fake stands only for faults and
for time. It waits for a condition (`waiting.until`), and never sleeps.

Helpers, by what they provide:

    waiting.py                     `until` a condition holds; free ports
    dockerd.py                     a docker engine of a test's own
    cache/contents.py              chunks whose bytes follow from a number, so that every byte read can be checked; which
                                   deleted files a process has open
    cache/writer.py                a process that fills a cache until it is killed
    cli/zygote.py                  commands in forked processes, with whatever streams, users and terminals a test wants
    commit/disk_clone.py           a clone of a small disk image, without a server
    commit/in_process.py           a publisher in the process of whoever asks
    corpus/starts.py               timed starts of programs, from a store nearby or behind a delay
    export/exported.py             images exported from a store in a folder, and what their layers have
    export/registry.py             a registry that takes images, on loopback
    export/committed.py            versions committed from clones whose file systems were mounted and changed
    faults/links.py                netshape, a relay that behaves like a long, narrow or faulty link
    filesystem/ext4/odd.py         layers with every oddity that images have
    filesystem/ext4/tarfiles.py    layers of an OCI layout, read by Python's tarfile
    filesystem/ext4/volumes.py     ext4 volumes in sparse files, checked with e2fsck and compared with a model
    format/trees.py                random maps of extents, a dictionary per block as their model, nodes in memory
    guest/client.py                attaches by netlink in the guest, reads, writes, and measures
    host/box.py                    a host for containers that a module's tests share, and a terminal to sit at
    host/standin.py                a control socket that gives prepared answers, and passes other requests on
    image/builder.py               `docker save` archives, imports into a directory, a tar put together again
    image/layouts.py               OCI layouts and tar archives, written by Python's tarfile
    image/model.py                 the simplest model of layers that lie on layers: a dictionary of paths
    image/mounted.py               volumes mounted by the kernel: compared, written to, grown
    image/registry.py              Debian's registry on loopback, and what it was asked for
    learn/volumes.py               a block index and traces of a made-up volume
    registry/running.py            a registry of the store, as people start it
    report/hostile.py              a store and traces whose names attack the pages that show them
    serve/committer.py             a process that commits a clone to a name again and again, in competition with others
    serve/mover.py                 a process that moves a name again and again, in competition with others
    serve/nbd.py                   an NBD client that can send what well-behaved clients never send
    store/faulty.py                stores that fail on demand, or count questions
    store/made.py                  a store that is made where there is none
    store/misbehaving.py           a web server that breaks HTTP, or dawdles, as it is told to
    store/relay.py                 a relay in front of a server that loses answers on demand
    store/servers.py               SeaweedFS, rclone, Ceph, Azurite and nginx on loopback
    store/signers.py               keys that are the same in every run; objects that whoever owns the storage has changed
    store/sleeping.py              a store through which a process sleeps at one step, while others go on
    store/steps.py                 a store that counts sequential round trips
    tools/installed.sh             builds, installs, uses and removes the Debian package in a fresh root
    tools/booted.sh                the package's units, in a container that systemd has booted
    trace/starting.py              a clock that stands still, a volume that answers at once, readers of stored traces
    upkeep/collecting.py           a store with a clock that tests move, images in it, and collections of its garbage
    upkeep/crashing.py             a process that is killed wherever something becomes durable, and looks at what is left
    volume/building.py             volumes made of bytes, without a file system; a store that records requests
    volume/bundled.py              volumes with bundles of some of their blocks
    volume/opened.py               a volume that is open, its parts, and a start that reads it and may replay a bundle
    volume/volatile.py             a file that forgets what was not synced, when the power is cut

Fixtures, by the conftest.py that defines them:

    conftest.py            `need` programs or `need_root`, else skip; `sample_image`; object stores, and `remote` on each
    corpus/, faults/       images of the corpus, served
    guest/                 `guest`, which runs a script under QEMU
    host/                  `host`, a store, a cache and a state in one folder; `serving` and `mounting` hosts
    serve/                 `server` with small images, and `idle_server`
    store/                 `store`, each implementation of the interface

Markers: `long` takes minutes or needs the corpus, and runs with `--long` only; `root` needs root; `guest` boots a QEMU guest.

Environment:

    BLOCKMAP_REQUIRE       words, with commas: a skipped test that is marked with one, or whose reason names one, fails
    BLOCKMAP_CORPUS        folder with an OCI layout of each image of the corpus
    BLOCKMAP_SHARED        folder with netshape and the corpus' programs
    BLOCKMAP_AZURITE       Azurite's program; without it, npm installs one
    BLOCKMAP_STRESS_SECONDS, BLOCKMAP_EXPLORE_SECONDS
                           how long the stress and the search for new examples go on; 600 each

BLOCKMAP_TEST_SESSION is set by conftest.py, to find processes that tests leave behind.
"""
