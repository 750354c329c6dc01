"""The Python API: what the commands do, for programs that script it, such as sandboxes of agents and CI runners.

    import blockmap

    images = blockmap.open("/srv/images")
    images.clone("python:3.12", "box")
    images.attach("box", "/mnt/box")
    ...
    commit = images.commit("box", "team/app:1", message="with numpy")
    for entry in images.log("team/app:1"):
        print(entry.number, entry.message)

`blockmap.open` is `ImageStore`. Each of its methods is called as a command is, does what that does, and raises the errors of
`blockmap.errors`; what people should know besides is logged as a warning. `Host` has what needs a server
and nothing else, `CloneHost` adds clones, and `ImageStore` what is in the store: so a command loads no more than it needs, and
`import blockmap` none of it.

Imports `host`, `control`, `upkeep` and what is below them. The command line calls it, and shows what it returns.
"""
