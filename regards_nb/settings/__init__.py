"""Settings of a tracker: arguments, environment, a profile, keyring, prompt.

The value of each setting is the first of:

1. the argument of ``OrderTracker.from_profile(..., name=value)``;
2. the environment variable ``REGARDS_...`` (``REGARDS_TENANT`` for ``tenant``);
3. the profile in the settings file (see `profiles_path`);
4. the default of `OrderTracker` and `RegardsClient`.

The settings file holds no passwords and tokens. They come from the argument, the environment, the
keyring of the system (if the package ``keyring`` is installed) or a prompt (if there is a terminal
or a notebook). regards_nb never writes them anywhere.

``profiles``
    the settings and their types, the settings file, and the tracker they make;
``secrets``
    passwords from environment, keyring and prompt;
``workers``
    what a worker in another process gets, and makes client and journal of.
"""

from __future__ import annotations

from regards_nb.settings.profiles import (
    FIELDS,
    PROFILE_VARIABLE,
    check_options,
    profile_names,
    profiles_path,
    read_profile,
    tracker_from_env,
    tracker_from_profile,
)
from regards_nb.settings.secrets import SECRETS, source_of, variable
from regards_nb.settings.workers import SettingsSource, WorkerSettings, settings_source

__all__ = [
    "FIELDS",
    "PROFILE_VARIABLE",
    "SECRETS",
    "SettingsSource",
    "WorkerSettings",
    "check_options",
    "profile_names",
    "profiles_path",
    "read_profile",
    "settings_source",
    "source_of",
    "tracker_from_env",
    "tracker_from_profile",
    "variable",
]
