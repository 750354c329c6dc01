"""Block devices of this host that show an export, each kind behind the protocol `Attacher`."""
