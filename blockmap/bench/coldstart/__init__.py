"""`blockmap bench coldstart`: from the request to open an export to a program that is ready, over a slow link.

    command              checks the prerequisites (the relay, the corpus, each row's programs), measures, prints
    measurement          makes the starts in the order of schedule, and sums them up
    images, recording    make each image in the forms that the rows need, and blockmap's profile of it
    origin               the far side: an nginx before all bytes, over an engine; origin_log has the requests that it saw
    link                 the slow link before the origin, one for each start
    ways                 get an image's files: blockmap, a peer or a pull; blockmap_server, overlay and processes help
    timed_start          one start by one way: empty caches, a link, a clock until the program is ready
    opening              an open alone, by the same clock
    report, plot         show all starts: their slope over round trips, and their cost by price_list

    command -> measurement -> timed_start -> ways -> link -> origin
                  starts, with requests of origin_log -> report

Needs root, the relay `netshape` and the corpus's `run-startup`, which are no part of blockmap.
"""
