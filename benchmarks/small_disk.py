"""A small file system that only one command sees: how a disk is full without filling one."""

from __future__ import annotations

import os
import subprocess


def own_mounts() -> list[str]:
    """Return the beginning of a command line that may mount what nobody else sees.

    Needs no root where the system allows user namespaces; root needs none of those.
    """
    as_user = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*as_user, "true"], capture_output=True, check=False).returncode == 0:
        return as_user
    if os.geteuid() == 0:
        # In a chroot there is no root mount whose propagation could be changed.
        return ["unshare", "--mount", "--propagation", "unchanged"]
    raise RuntimeError("this needs user namespaces (sysctl user.max_user_namespaces), or root")
