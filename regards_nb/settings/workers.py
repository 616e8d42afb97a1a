"""What a worker in another process gets to make client and journal itself: no secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regards_nb.errors import SettingsError
from regards_nb.journal import Journal, location_of
from regards_nb.settings.profiles import (
    client_of,
    from_environment_variables,
    read_profile,
    variable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from regards_nb.client import RegardsClient

#: Options in code that workers get as text, and options that they do not need.
_CARRIED = frozenset({"tenant", "journal", "workspace"})
_NOT_NEEDED = frozenset({"amqp", "queue", "amqp_password", "auto_download", "silence_s", "poll_s"})
#: What stands for a password in the location of a journal.
_HIDDEN = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsSource:
    """Where the settings of a tracker come from: a profile, or (None) the environment alone.

    *only_in_code* are the options that were given in code, and that no worker can find or be given.
    *workspace* is as the user wrote it.
    """

    profile: str | None
    only_in_code: tuple[str, ...]
    workspace: str


def settings_source(
    name: str | None, options: Mapping[str, Any], *, of_profile: bool
) -> SettingsSource:
    """Return where the settings of a tracker come from.

    *name* as in `read_profile`; *options* were given in code. Without *of_profile* there is only
    the environment.
    """
    profile, settings = read_profile(name) if of_profile else (None, {})
    settings |= from_environment_variables()
    only_in_code = set(options) - _CARRIED - _NOT_NEEDED
    if _HIDDEN in location_of(options.get("journal") or ""):
        only_in_code.add("the password in journal")
    workspace = options.get("workspace") or settings.get("workspace") or "orders"
    return SettingsSource(
        profile=profile, only_in_code=tuple(sorted(only_in_code)), workspace=str(workspace)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What travels to a worker. It holds no password, token or key.

    The worker reads *profile* in its own settings file (None: its environment alone), and compares
    *url* with that of the profile. *is_shared*: the worker may be on another machine, where the
    workspace must be there already.
    """

    profile: str | None
    url: str
    tenant: str | None
    journal: str
    workspace: str
    is_shared: bool

    def client(self) -> RegardsClient:
        """Make the client of the profile.

        SettingsError: the worker has no such profile or no password, or it is of another archive.
        """
        settings, source = self._read()
        if self.tenant is not None:
            settings["tenant"] = self.tenant
        if not settings.get("url"):
            raise SettingsError(
                f"{source} on the worker has no url ({variable('url')}), the address of REGARDS"
            )
        client = client_of(settings, {}, source)
        if client.base_url != self.url:
            found = client.base_url
            client.close()
            raise SettingsError(
                f"{source} on the worker has url = {found!r}, and the tracker uses {self.url!r}"
            )
        return client

    def open_journal(self) -> Journal:
        """Open the journal of the tracker.

        SettingsError: it needs a password, and the settings of the worker name another journal.
        """
        settings, source = self._read()
        own = settings.get("journal")
        if own and location_of(own) == self.journal:
            return Journal(own)
        if _HIDDEN in self.journal:
            raise SettingsError(
                f"{source} on the worker does not name the journal {self.journal}: set "
                f"{variable('journal')} there"
            )
        return Journal(self.journal)

    def _read(self) -> tuple[dict[str, Any], str]:
        if self.profile is None:
            return from_environment_variables(), "the environment"
        _, settings = read_profile(self.profile)
        return settings | from_environment_variables(), f"profile {self.profile!r}"
