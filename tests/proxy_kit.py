"""Private reverse proxies in front of a server, and a forward proxy: the programs themselves.

Each runs on a free port with its files in a temporary folder. A reverse proxy waits one second for
the first byte of a response and has three paths of its own: ``/refused`` answers 403,
``/missing`` 404 and ``/login`` 401, each with the page that the program makes. nginx also redirects
``/portal`` to another host and ``/moved`` to itself; Apache compresses what is below ``/gzip``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEADLINE_S = 60.0


class Program(NamedTuple):
    """A proxy program: its command and its configuration, templates of the Debian package's."""

    package: str
    command: list[str]
    configuration: str
    #: The user of the worker processes, where the program refuses to be root.
    user: str | None = None
    #: Ends the program at once.
    stop_signal: signal.Signals = signal.SIGTERM


NGINX = Program(
    "nginx-light",
    ["nginx", "-p", "$folder", "-c", "$folder/configuration", "-e", "$folder/log"],
    """
daemon off;
${as_root}user root;
pid $folder/pid;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path $folder/1; proxy_temp_path $folder/2; fastcgi_temp_path $folder/3;
  uwsgi_temp_path $folder/4; scgi_temp_path $folder/5;
  server {
    listen 127.0.0.1:$port;
    location / { proxy_pass http://127.0.0.1:$origin; proxy_read_timeout 1s; }
    location /refused { return 403; }
    location /missing { return 404; }
    location /login { return 401; }
    location /portal { return 302 https://sso.example/realms/login; }
    location /moved { return 301 $$scheme://$$host:$$server_port/elsewhere; }
  }
}
""",
)
APACHE = Program(
    "apache2-bin",
    ["apache2", "-f", "$folder/configuration", "-D", "FOREGROUND"],
    """
ServerRoot $folder
ServerName localhost
Listen 127.0.0.1:$port
PidFile $folder/pid
Mutex file:$folder
ErrorLog $folder/log
${as_root}User www-data
${as_root}Group www-data
LoadModule mpm_event_module $modules/mod_mpm_event.so
LoadModule authz_core_module $modules/mod_authz_core.so
LoadModule alias_module $modules/mod_alias.so
LoadModule env_module $modules/mod_env.so
LoadModule setenvif_module $modules/mod_setenvif.so
LoadModule filter_module $modules/mod_filter.so
LoadModule deflate_module $modules/mod_deflate.so
LoadModule proxy_module $modules/mod_proxy.so
LoadModule proxy_http_module $modules/mod_proxy_http.so
ProxyTimeout 1
ProxyPass /refused !
ProxyPass /missing !
ProxyPass /login !
ProxyPass /gzip/ http://127.0.0.1:$origin/
ProxyPass / http://127.0.0.1:$origin/
Redirect 403 /refused
Redirect 404 /missing
Redirect 401 /login
<Location /gzip>
  SetEnv force-gzip
  SetOutputFilter DEFLATE
</Location>
""",
    "www-data",
)
HAPROXY = Program(
    "haproxy",
    ["haproxy", "-f", "$folder/configuration"],
    """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 1s
frontend front
  bind 127.0.0.1:$port
  http-request return status 403 default-errorfiles if { path_beg /refused }
  http-request return status 404 default-errorfiles if { path_beg /missing }
  http-request return status 401 default-errorfiles if { path_beg /login }
  default_backend back
backend back
  server origin 127.0.0.1:$origin
""",
)
SQUID = Program(
    "squid",
    ["squid", "-N", "-f", "$folder/configuration"],
    """
http_port 127.0.0.1:$port accel defaultsite=localhost no-vhost
cache_peer 127.0.0.1 parent $origin 0 no-query originserver login=PASSTHRU
acl refused urlpath_regex ^/refused ^/missing ^/login
http_access deny refused
http_access allow all
read_timeout 1 second
cache deny all
access_log none
cache_log $folder/log
pid_filename none
netdb_filename none
shutdown_lifetime 0 seconds
pinger_enable off
visible_hostname localhost
via on
""",
    "proxy",
    # With TERM and INT it waits for two seconds.
    signal.SIGKILL,
)
VARNISH = Program(
    "varnish",
    [
        *("varnishd", "-F", "-j", "none", "-n", "$folder/work", "-a", "127.0.0.1:$port"),
        *("-f", "$folder/configuration", "-s", "malloc,16m", "-p", "first_byte_timeout=1"),
    ],
    """
vcl 4.1;
backend origin { .host = "127.0.0.1"; .port = "$origin"; }
sub vcl_recv {
  if (req.url ~ "^/refused") { return (synth(403)); }
  if (req.url ~ "^/missing") { return (synth(404)); }
  if (req.url ~ "^/login") { return (synth(401)); }
  return (pass);
}
""",
)
REVERSE_PROXIES = {
    "nginx": NGINX,
    "Apache": APACHE,
    "HAProxy": HAPROXY,
    "Squid": SQUID,
    "Varnish": VARNISH,
}

#: A forward proxy that wants a password, as in many institutes; *refused.example* it never serves.
FORWARD_SQUID = SQUID._replace(
    configuration="""
http_port 127.0.0.1:$port
auth_param basic program $python $folder/helper
acl known proxy_auth REQUIRED
acl refused dstdomain refused.example
http_access deny refused
http_access allow known
http_access deny all
cache deny all
logfile_rotate 0
access_log stdio:$folder/access
cache_log $folder/log
pid_filename none
netdb_filename none
shutdown_lifetime 0 seconds
pinger_enable off
visible_hostname localhost
"""
)


#: Tells Squid whether a user name and its password are right.
_HELPER = """
import sys
for line in sys.stdin:
    print("OK" if line.split()[:2] == ["john", "right"] else "ERR", flush=True)
"""


class Running(NamedTuple):
    """A proxy that runs."""

    url: str
    folder: Path

    def log(self) -> list[str]:
        """Return the lines of the access log."""
        path = self.folder / "access"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def running(program: Program, origin_url: str = "") -> Iterator[Running]:
    """Run a proxy in front of *origin_url*; yield when it accepts connections."""
    name = program.command[0]
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError(f"these tests need {name}: sudo apt-get install {program.package}")
    # Below /tmp, which the users of the workers can enter; pytest's folder they cannot.
    folder = Path(tempfile.mkdtemp(prefix=f"regards-{name}-", dir="/tmp"))
    is_root = os.geteuid() == 0
    port = free_port()
    values = {
        "folder": str(folder),
        "port": str(port),
        "origin": origin_url.rpartition(":")[2],
        "modules": "/usr/lib/apache2/modules",
        "python": "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable,
        "as_root": "" if is_root else "# ",
    }
    (folder / "configuration").write_text(Template(program.configuration).substitute(values))
    (folder / "helper").write_text(_HELPER)
    if is_root and program.user:
        shutil.chown(folder, program.user)
        folder.chmod(0o755)
    command = [found, *(Template(word).substitute(values) for word in program.command[1:])]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        _wait_for(process, port, folder)
        yield Running(f"http://127.0.0.1:{port}", folder)
    finally:
        process.send_signal(program.stop_signal)
        try:
            process.wait(_DEADLINE_S)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a free port below those that the system gives to other programs meanwhile."""
    while True:
        port = random.randrange(10_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


def _wait_for(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    """Wait until a program accepts connections."""
    pause = threading.Event()
    for _ in range(int(_DEADLINE_S / 0.02)):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, _output(folder)
            pause.wait(0.02)
        else:
            return
    raise TimeoutError(_output(folder))


def _output(folder: Path) -> str:
    return "".join(
        (folder / name).read_text(errors="replace")
        for name in ("output", "log")
        if (folder / name).exists()
    )
