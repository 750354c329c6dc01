"""`blockmap report`: one page with plots of what starts read, and where they waited.

    sources    finds traces on this host, and what the store and a running server know of them
    files      says which file, directory and package a block belongs to
    data       makes numbers of these: reads by time, pauses, coverage by a profile
    maps, bars, tables    draw them, in the style of style
    page       puts the figures into one HTML page

    command -> sources -> files, data -> maps, bars, tables -> page

Imports bokeh, in `page` and what it draws with, only when a page is made.
"""
