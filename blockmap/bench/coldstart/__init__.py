"""`blockmap bench coldstart`: from the request to open an export to a program that is ready, over a slow link.

The far side (`origin`) is an nginx, through which every row's bytes come and whose log counts its requests; a link
(`link`) lies before it; `rows` are the ways to get an image's files, each measured by `runs` on one clock, in the order
of `plan`. Needs root, the relay `netshape` and the corpus's `run-startup` from a shared folder that is no part of
blockmap (`shared`).
"""
