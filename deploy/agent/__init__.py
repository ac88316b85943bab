"""What runs on the device: measures a bundle's file with the runtime found there.

Python >= 3.8, standard library and numpy; runtimes are imported only when used. Imports nothing of the project outside
itself, since it travels alone as a zipapp (`deploy.pack`): one JSON document in on stdin, one out on stdout.
"""

from __future__ import annotations

PROTOCOL = 1
"""Version of the JSON that host and agent exchange; they refuse each other where it differs."""
