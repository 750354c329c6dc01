"""`blockmap report`: one page with a waterfall of what starts read, and where they waited.

    sources     finds traces on this host, and what the store and a running server know of them
    files       says which file, directory and package a block belongs to
    data        makes numbers of these: reads and waits by time, where the start ends, coverage by a profile
    verdict     says in a sentence how a start went, and how two differ
    rows        sorts reads and waits into a row for each package and file, as bars in time
    waterfall, tables, style    write these as HTML
    page        puts them into one page

    command -> sources -> files, data -> verdict, rows -> waterfall, tables -> page

The page has no scripts and asks for nothing.
"""
