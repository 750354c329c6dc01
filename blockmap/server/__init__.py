"""One server: its parts, the exports and clones that are open, how they are opened, listed and hydrated, and the log of store
calls.

Imports `volume`, `trace` and lower layers. `nbdplugin` holds one server; requests come from it and from `control`.

Threads of a server. `spawn` (store/concurrent.py) makes threads that nobody has to wait for; all others are ended by the
object that made them, all of these by `Server.close` or by the plugin's end.

    name                      made by, and ends                        does
    nbdkit's, 9 a connection  nbdkit, with the connection              callbacks: reads (8 at once), block status, open
    open (64)                 Opener, at most 1 s later if it hangs    opens by name and digest, for which nbdkit's threads wait
    leader (128)              Fetcher, at most 5 s later if it hangs   first ranges of reads, for which nbdkit's threads wait
    demands (16)              Fetcher, likewise all of these           further ranges of one read
    neighbours (4)            Fetcher                                  ranges around a miss
    wants (4)                 Fetcher                                  finds and fetches what is prefetched
    scout (1)                 Fetcher                                  leaves around one that was read
    prefetch (16)             Prefetcher of the Fetcher                ranges that are brought ahead of a start that misses
    prefetch decoder          Prefetcher, with the first of these     verifies and caches them when there is time
    decoders (2)              Fetcher                                  verifies what came beside what a reader waits for
    damage recorder           DamageRecorder, at most 1 s later        records what readers found damaged in the store
    cache writer              Flights                                  gives the cache what was delivered
    staging                   StagingArea                              gives the cache what bundles brought, when reads pause
    cache journal             Journal of the Cache                     SQLite: what the cache holds
    scrubber                  Scrubber                                 checks the cache, slowly; begins it anew where it was removed
    replay                    Replay, when all is asked for            plans a bundle, asks for its ranges
    frame decoder             FrameDecoder of a Replay, with it        opens the frames of a bundle
    probe                     OutageGate, with the outage              asks a store that is away until it answers
    connection keeper         ConnectionKeeper; remote stores only     keeps connections open
    store call                `spawn`, with the call                   one question to the store, one range of a bundle, or
                                                                       the wait for a bundle that is followed by a hydration
    hydrate                   Hydration, when all has come             brings the rest of a version
    start hydration           Hydrations, while a start goes missing   says what is brought ahead, and how much
    traces                    TraceManager, while a trace runs         writes what was read, ends traces that are over
    learn                     LearnerProcess, while something waits    runs `blockmap profile build`
    commit                    Commits, while something is captured     has captures published by `blockmap.commit.publisher`
    pins                      OpenPins, while something is open; at    pins what is open in the store, where it can be written
                              most 1 s later if it hangs
    publisher                 PublisherProcess, with its process       waits for its end, since it ends with this thread
    watch                     the plugin, with the process             waits for nbdkit's signal to end
    stop                      the plugin, with the process             waits for SIGTERM, then leaves all clients, and ends nbdkit
    drain                     the plugin, when it ends                 takes what clients that were left are answered
    control, control client   Control, with the process                answers the control socket, 64 clients at once
    metrics (1+32)            MetricsServer, with the process          answers Prometheus

Locks. A lock guards the attributes below it, and is held for a few of the interpreter's instructions: neither across I/O
nor while another lock is taken. Hits take none. The exceptions, all of them:

    outer                   > inner
    Cache._room             > Cache._lock              whoever makes room; held while an evicted slot is punched
    StagingArea._writing    > StagingArea._changed     whoever writes all that is staged; held while the cache is written
    StagingArea._writing    > Cache._room
    StagingArea._writing    > Cache._lock
    _Entry.lock             > Clones._lock             whoever opens or closes a clone
    _Entry.lock             > CloneTable._lock
    _Entry.lock             > CloneVolume._turn
    _Entry.lock             > CloneVolume._lock
    CloneVolume._turn       > CloneVolume._lock        a flush takes what has changed,
    CloneVolume._turn       > CloneTable._lock         and stores it
    Replay._lock            > FrameDecoder._changed    frames are handed on in the order in which ranges come
    Stream._changed         > Ranges._lock             asks how much the link holds

    held across I/O of the local disk: Cache._room and StagingArea._writing; RecordCache._lock and CloneTable._lock, which
    guard a connection to SQLite; _Entry.lock, one for each clone, and CloneVolume._turn; WriteJournal._lock, while its file
    is given room; TraceManager._lock, while a trace is made; Recorder._lock, which guards the file; LearnerProcess._lock and
    PublisherProcess._lock, while a process starts.
    held while something is computed: Verifier._lock, on purpose: one at a time verifies.

tests/server/test_lock_order.py reads this, and runs a server under load.
"""
