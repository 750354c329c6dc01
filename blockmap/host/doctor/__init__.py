"""Checks all that blockmap needs of this host, and says of each thing what is wrong and what to do: `blockmap doctor`.

A check looks, and changes nothing but an object of a store that it makes and deletes, to see that it can. It needs neither root
nor a server nor a store: what it cannot look at without one, it says. Each file has the checks of one part.
"""
