"""A ProxyCommand: carries bytes between stdin/stdout and a port, as slowly or as briefly as told.

relay.py PORT RATE LIMIT COUNTER: RATE bytes/s towards the server (0: no limit); the line ends after LIMIT bytes
towards it (0: never), but only while the file COUNTER holds a number above 0, which is lowered by one.
"""

import os
import socket
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    port, rate, limit, counter = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if limit:
        left = int(counter.read_text())
        counter.write_text(str(max(0, left - 1)))
        limit = limit if left else 0
    server = socket.create_connection(("127.0.0.1", port))
    threading.Thread(target=_down, args=(server,), daemon=True).start()
    sent = 0
    while block := os.read(0, 16384):
        if limit and sent + len(block) > limit:
            os._exit(0)
        server.sendall(block)
        sent += len(block)
        if rate:
            time.sleep(len(block) / rate)


def _down(server: socket.socket) -> None:
    while block := server.recv(65536):
        os.write(1, block)
    os._exit(0)


main()
