"""A web server over a folder, for reading: WsgiDAV, which lists folders (WebDAV) and serves ranges, as Apache does.

usage: serve.py FOLDER PORT_FILE      (the port that the kernel chose is written into PORT_FILE)
"""

import os
import sys

from cheroot import wsgi
from wsgidav.wsgidav_app import WsgiDAVApp

folder, port_file = sys.argv[1:]
application = WsgiDAVApp(
    {
        "provider_mapping": {"/": {"root": folder, "readonly": True}},
        "simple_dc": {"user_mapping": {"*": True}},
        "logging": {"enable": False},
        "verbose": 1,
    }
)
server = wsgi.Server(("127.0.0.1", 0), application)
server.prepare()
# Complete or not there.
with open(port_file + ".new", "w") as file:
    file.write(str(server.bind_addr[1]))
os.rename(port_file + ".new", port_file)
server.serve()
