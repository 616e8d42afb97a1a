"""Where a tracker's settings come from: arguments, environment, a profile, keyring, prompt.

For each setting the first that says something decides:

1. the argument of ``OrderTracker.from_profile(..., name=value)``;
2. the environment variable ``REGARDS_...`` (``REGARDS_TENANT`` for ``tenant``);
3. the profile in the settings file (see `profiles_path`);
4. the default of `OrderTracker` and `RegardsClient`.

Passwords and tokens are in no file: after argument and environment come the keyring of the
system, where the package ``keyring`` is installed, and a prompt, where somebody is there to
answer it. They are never written anywhere by regards_nb.

``fields``
    what there is to set, and how each is spelled;
``profiles``
    the file, with the line of what is wrong;
``secrets``
    environment, keyring, prompt;
``trackers``
    from settings to a tracker.
"""

from __future__ import annotations

from regards_nb.settings.profiles import profile_names, profiles_path, read_profile
from regards_nb.settings.trackers import tracker_from_env, tracker_from_profile

__all__ = [
    "profile_names",
    "profiles_path",
    "read_profile",
    "tracker_from_env",
    "tracker_from_profile",
]
