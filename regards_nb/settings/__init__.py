"""Settings of a tracker: arguments, environment, a profile, keyring, prompt.

The value of each setting is the first of:

1. the argument of ``OrderTracker.from_profile(..., name=value)``;
2. the environment variable ``REGARDS_...`` (``REGARDS_TENANT`` for ``tenant``);
3. the profile in the settings file (see `profiles_path`);
4. the default of `OrderTracker` and `RegardsClient`.

The settings file holds no passwords and tokens. They come from the argument, the environment, the
keyring of the system (if the package ``keyring`` is installed) or a prompt (if there is a terminal
or a notebook). regards_nb never writes them anywhere.

- ``profiles``: the settings and their types, the settings file, passwords, and the tracker they
  make;
- ``workers``: what a worker in another process gets, and makes client and journal of.
"""

from __future__ import annotations

from regards_nb.settings.profiles import FIELDS as FIELDS
from regards_nb.settings.profiles import PROFILE_VARIABLE as PROFILE_VARIABLE
from regards_nb.settings.profiles import SECRETS as SECRETS
from regards_nb.settings.profiles import check_options as check_options
from regards_nb.settings.profiles import profile_names as profile_names
from regards_nb.settings.profiles import profiles_path as profiles_path
from regards_nb.settings.profiles import read_profile as read_profile
from regards_nb.settings.profiles import source_of as source_of
from regards_nb.settings.profiles import tracker_from_env as tracker_from_env
from regards_nb.settings.profiles import tracker_from_profile as tracker_from_profile
from regards_nb.settings.profiles import variable as variable
from regards_nb.settings.workers import SettingsSource as SettingsSource
from regards_nb.settings.workers import WorkerSettings as WorkerSettings
from regards_nb.settings.workers import settings_source as settings_source
