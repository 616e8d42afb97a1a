"""The files of an SQLite journal: keep its -wal in place, notice when the files were changed.

A commit writes to the open -wal. It is durable only while that file is the one beside the path:
a later process reads the path and not our descriptor. Two things can separate them.

POSIX locks belong to the process. When any code in this process closes a descriptor of the file
(``shutil.copy``, ``read_bytes``, a second SQLite library), Linux drops the locks of our SQLite.
Another process that opens and closes the journal then believes to be the last one and deletes the
-wal. `SqliteFile` therefore holds locks of its own that belong to the open file (``F_OFD_SETLK``),
on the ranges that SQLite tests before it deletes anything.

A person can delete, move, replace or overwrite the files. `SqliteFile.is_in_place` compares device
and inode with two calls of ``stat``, and reads the header of the main file when its time of change
differs.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
import sys
import threading
import time
import warnings
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from regards_nb.computer import file_system_of
from regards_nb.errors import JournalError
from regards_nb.text import counted
from regards_nb.waits import idle

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

_Inode: TypeAlias = "tuple[int, int]"

#: What SQLite locks (its "os_unix.c"): the shared range of the main file, which each connection
#: in WAL mode holds; and the byte of the -shm that says that somebody uses it.
_SHARED_RANGE = (0x40000002, 510)
_IN_USE_BYTE = (128, 1)

_LOCK_RETRIES = 50
_LOCK_RETRY_S = 0.02
#: An empty file that is older is not just being created.
_CREATION_S = 2.0

#: The messages may be those of other users, too: see docs/security.md.
_MODE = 0o600
_HEADER_BYTES = 100
_WAL_HEADER_BYTES = 32
#: The size of a -wal is a multiple of it: few commits make the file longer.
_WAL_STEP_BYTES = 256 * 1024
_MAGIC = b"SQLite format 3\0"
#: offset in the header; 1: rollback journal, 2: WAL
_FORMAT_OFFSET = 18
_ROLLBACK_FORMAT, _WAL_FORMAT = 1, 2
#: Where the header has the size of a page (1 stands for 65,536), the number of pages, the version
#: of the schema, and the number that `SqliteFile.number_content` writes.
_PAGE_BYTES, _PAGES, _SCHEMA_VERSION = slice(16, 18), slice(28, 32), slice(40, 44)
_USER_VERSION = slice(60, 64)
#: The number of pages is right if these two counters are equal.
_COUNTER, _COUNTER_OF_PAGES = slice(24, 28), slice(92, 96)


#: File systems on which the locks and the shared memory of SQLite do not work reliably.
_NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4",
        "smb3", "smbfs",
    }
)  # fmt: skip


class NetworkFileSystemWarning(UserWarning):
    """The journal is on a network file system: a crash or a second kernel can damage it."""


class Change(Enum):
    """The condition of the files of an open journal."""

    #: The main file is gone.
    DELETED = auto()
    #: The main file has 0 bytes.
    EMPTIED = auto()
    #: The main file is the same one with the content of another: it was copied over.
    OVERWRITTEN = auto()
    #: Only the -wal is gone; the -shm is still the one that we use, so nobody else uses a new -wal.
    WAL_DELETED = auto()
    #: Another main file or another -wal is at the path.
    REPLACED = auto()


@dataclass
class _Locks:
    """The descriptors of this process that hold locks on one journal.

    All journals of the process share them: to close one descriptor drops the POSIX locks of every
    SQLite connection of the process to that file.
    """

    users: int = 0
    descriptors: dict[_Inode, tuple[int, tuple[int, int]]] = field(default_factory=dict)


_locks: dict[_Inode, _Locks] = {}
#: reentrant: the garbage collector can close a journal while this thread opens another one
_locks_guard = threading.RLock()


class SqliteFile:
    """The main file, the -wal and the -shm that the connections of a journal use.

    Made after the first connection, which creates them.
    """

    #: Whether to take locks that belong to the open file. Python offers them on Linux only.
    has_open_file_locks = sys.platform == "linux"

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._wal = f"{path}-wal"
        self._shm = f"{path}-shm"
        names = (self.path, self._wal, self._shm)
        self.main_inode, self._wal_inode, self._shm_inode = (_identity(os.stat(n)) for n in names)  # noqa: PTH116
        self._wal_bytes = 0
        self._is_overwritten = False
        with _locks_guard:
            locks = _locks.setdefault(self.main_inode, _Locks())
            locks.users += 1
            for name, extent in ((self.path, _SHARED_RANGE), (self._shm, _IN_USE_BYTE)):
                _hold(locks, name, extent, with_lock=self.has_open_file_locks)
            self._descriptor, _ = locks.descriptors[self.main_inode]
        #: of the main file at the last look: size and time, and what its header says
        self._seen = _size_and_time(os.stat(self.path))  # noqa: PTH116
        self._state = _header_state(self._descriptor)
        #: the main file with the number of the last transaction that wrote one
        self._numbered: tuple[int, int] | None = None

    def number_content(self, connection: sqlite3.Connection) -> None:
        """Write a number for the next content of the main file, in a transaction that writes.

        The main file changes when SQLite moves the -wal into it. The first transaction after that
        writes the next number, so that an earlier copy of the file can be told from a later one.
        """
        if self._numbered != self._seen:
            (number,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {number + 1}")
            self._numbered = self._seen

    def lengthen_wal(self) -> None:
        """Append zeros to the -wal, before the commit of a transaction that writes.

        Linux flushes the disk twice for each commit that makes the file longer, and once for
        another. SQLite writes over the zeros, and reads none: a frame without the salt of the
        header is not valid (its file format, section 4.1).
        """
        if self._wal_bytes % _WAL_STEP_BYTES:
            # To append overwrites nothing, even if another process writes. The commit reports what
            # is wrong with the disk.
            flags = os.O_WRONLY | os.O_APPEND
            with suppress(OSError), os.fdopen(os.open(self._wal, flags), "ab", 0) as wal:
                wal.write(bytes(-wal.tell() % _WAL_STEP_BYTES))

    def is_in_place(self) -> bool:
        """Return whether the path still leads to the files that the connections use."""
        try:
            main = os.stat(self.path)  # noqa: PTH116 - called for each commit
            wal = os.stat(self._wal)  # noqa: PTH116
        except OSError:
            return False
        self._wal_bytes = wal.st_size
        return (
            _identity(main) == self.main_inode
            and _identity(wal) == self._wal_inode
            and (_size_and_time(main) == self._seen or self._is_own_content(main))
        )

    def _is_own_content(self, main: os.stat_result) -> bool:
        """Return whether a main file that was written since the last look is still our journal.

        SQLite itself writes to it when it moves the -wal into it. The header then says that a -wal
        belongs to the file; that of a backup says that none does. The number of pages grows, until
        VACUUM increments the version of the schema; an earlier copy has fewer, or a lower number of
        `number_content`.
        """
        state = _header_state(self._descriptor)
        if self._is_overwritten or state < self._state:
            self._is_overwritten = True
            return False
        self._seen, self._state = _size_and_time(main), state
        return True

    def change(self) -> Change:
        """Return the condition of the files; call it if `is_in_place` is false."""
        try:
            main = os.stat(self.path)  # noqa: PTH116
        except FileNotFoundError:
            # An overwritten file has nothing that could be written again.
            return Change.REPLACED if self._is_overwritten else Change.DELETED
        if _identity(main) != self.main_inode:
            return Change.REPLACED
        if main.st_size == 0:
            return Change.EMPTIED
        if self._is_overwritten:
            return Change.OVERWRITTEN
        is_ours = inode(self._wal) is None and inode(self._shm) == self._shm_inode
        return Change.WAL_DELETED if is_ours else Change.REPLACED

    @contextmanager
    def released(self, *, keep_files: bool) -> Iterator[None]:
        """Give up the locks; the block must close the connections.

        The descriptors are closed last: to close them would drop the locks of the connections.

        SQLite moves the -wal into the main file and deletes it by its name when the last connection
        closes. After a change of the files the name may belong to another -wal, and the main file
        to another journal. *keep_files* keeps our locks until then, which prevents it (on Linux).
        """
        with _locks_guard:
            locks = _locks.get(self.main_inode, _Locks(users=1))
            locks.users -= 1
            if locks.users == 0:
                _locks.pop(self.main_inode, None)
                for descriptor, extent in () if keep_files else locks.descriptors.values():
                    with suppress(OSError):
                        _set_lock(descriptor, extent, held=False)
            try:
                yield
            finally:
                if locks.users == 0:
                    for descriptor, _ in locks.descriptors.values():
                        os.close(descriptor)

    def remove_old_wal(self, *, rename: bool) -> None:
        """Remove our -wal and -shm if the main file beside them has another content now.

        SQLite would write the pages of the old -wal into it. They are deleted, or renamed if
        *rename*.
        """
        is_same = inode(self.path) == self.main_inode and not self._is_overwritten
        if is_same or inode(self._wal) != self._wal_inode:
            return
        for each in map(Path, (self._wal, self._shm)):
            with suppress(FileNotFoundError):
                aside = each.rename(unused_name(each, "old"))
                if not rename:
                    aside.unlink()

    def left_open(self) -> list[tuple[str, str]]:
        """Return the descriptors of this process that are still open on the files (Linux only).

        Called when all connections of regards_nb are closed: these belong to other code. Each is
        given as its link below ``/proc`` and the name of the file. They do no harm if another main
        file is at the path now.
        """
        if inode(self.path) not in {None, self.main_inode}:
            return []
        ours = {self.main_inode, self._wal_inode, self._shm_inode}
        found = []
        for link in Path("/proc/self/fd").iterdir() if sys.platform == "linux" else ():
            with suppress(OSError):
                if inode(link) in ours:
                    found.append((str(link), str(link.readlink())))
        return found


def still_open(descriptors: list[tuple[str, str]]) -> list[str]:
    """Return the names of the files of `SqliteFile.left_open` that are open still."""
    found = set()
    for link, name in descriptors:
        with suppress(OSError):
            if str(Path(link).readlink()) == name:
                found.add(name)
    return sorted(found)


def unused_name(path: Path, word: str) -> Path:
    """Return a path with a word and a number behind it, such as ``journal.sqlite.old-1``."""
    names = (path.with_name(f"{path.name}.{word}-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def inode(path: str | Path) -> _Inode | None:
    """Return device and inode of a file; None if it is not there."""
    try:
        return _identity(os.stat(path))  # noqa: PTH116 - called for each connection
    except OSError:
        return None


def _identity(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _size_and_time(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _header_state(descriptor: int) -> tuple[int, ...]:
    """Return what grows with each state of the content; less than any if there is no -wal."""
    header = os.pread(descriptor, _HEADER_BYTES, 0)
    if not header.startswith(_MAGIC) or header[_FORMAT_OFFSET] != _WAL_FORMAT:
        return (-1,)
    fields = (_SCHEMA_VERSION, _PAGES, _USER_VERSION)
    return tuple(int.from_bytes(header[field]) for field in fields)


def _hold(locks: _Locks, path: str, extent: tuple[int, int], *, with_lock: bool) -> None:
    """Open a file, and take a shared lock that belongs to the open file."""
    if inode(path) in locks.descriptors:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    # A file system may have no such locks: `is_in_place` is the only protection there.
    with suppress(OSError):
        for _ in range(_LOCK_RETRIES if with_lock else 0):
            try:
                _set_lock(descriptor, extent, held=True)
            except BlockingIOError:  # another process opens or closes the journal just now
                idle.wait(_LOCK_RETRY_S)
            else:
                break
    # Not closed on failure: that would drop the locks of the connections.
    locks.descriptors[_identity(os.fstat(descriptor))] = (descriptor, extent)


def _set_lock(descriptor: int, extent: tuple[int, int], *, held: bool) -> None:
    if sys.platform == "linux":
        kind = fcntl.F_RDLCK if held else fcntl.F_UNLCK
        # struct flock: type, whence, start, length, pid
        flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, *extent, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock)


def check_before_opening(path: Path) -> None:
    """Refuse files that SQLite would take for an empty journal, or mix with a foreign -wal."""
    wal, shm = Path(f"{path}-wal"), Path(f"{path}-shm")
    wal_bytes = _size_bytes(wal)
    if not path.exists():
        if wal_bytes:
            raise JournalError(
                f"the journal {path} is missing, but {wal.name} is there and holds its newest "
                f"messages. Put {path.name} back; or, to start a new journal, move {wal.name} "
                f"and {shm.name} away"
            )
        return
    if path.is_file() and not _has_content(path):
        raise JournalError(
            f"the journal {path} has {counted(_size_bytes(path), 'byte')}: it was emptied, or the "
            f"disk was full when it was copied. Put a backup in its place (move {wal.name} and "
            f"{shm.name} away first); or, to start a new journal, delete the file"
        )
    if wal_bytes > _WAL_HEADER_BYTES and _is_rollback_format(path):
        raise JournalError(
            f"{path} is a backup, and the {wal.name} beside it belongs to the journal that was "
            f"there before. Move {wal.name} and {shm.name} away, then open the journal again"
        )
    if not wal_bytes and _is_incomplete(path):
        raise JournalError(
            f"{path} is an incomplete copy: another program is copying it, or the copy was "
            "interrupted. Copy the backup again"
        )


def make_file(path: Path) -> None:
    """Make the file of a new journal, without tables, and first an empty -wal; keep what exists.

    SQLite makes the two in several steps: another kernel that opens the file between them would
    take it for one that was emptied, or for a copy without its -wal.
    """
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.execute("PRAGMA user_version = 0")  # writes the header
        page = bytearray(empty.serialize())
    page[_FORMAT_OFFSET : _FORMAT_OFFSET + 2] = _WAL_FORMAT, _WAL_FORMAT
    try:
        Path(f"{path}-wal").touch(_MODE)
        path.touch(_MODE, exist_ok=False)
        try:
            with path.open("r+b") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()
            raise
    except FileExistsError:
        pass  # of another kernel
    except OSError as exc:
        # in the words of SQLite, by which `remedy` finds the advice
        what = "disk is full" if exc.errno == errno.ENOSPC else "unable to open the file"
        raise sqlite3.OperationalError(f"{what} ({exc.strerror})") from exc


def _size_bytes(path: Path) -> int:
    """Return the size of a file; 0 if it is not there. Another kernel may delete it just now."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):  # of a wrong folder, opening says what to do
        return 0


def _has_content(path: Path) -> bool:
    """Return whether the file is not empty; wait if another kernel is creating it.

    For SQLite a file of 1 byte is empty, too: on some file systems it writes one into a new file.
    """
    for _ in range(_LOCK_RETRIES):
        status = path.stat()
        if status.st_size > 1 or time.time() - status.st_mtime > _CREATION_S:
            return status.st_size > 1
        idle.wait(_LOCK_RETRY_S)
    return path.stat().st_size > 1


def is_in_use(path: Path) -> bool:
    """Return whether a process has the journal open (Linux only)."""
    if sys.platform != "linux":
        return False
    for name, extent in ((path, _SHARED_RANGE), (Path(f"{path}-shm"), _IN_USE_BYTE)):
        if name.exists():
            flock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, *extent, 0)
            with suppress(OSError), name.open("rb+") as file:
                found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, flock)
                if struct.unpack("hhqqi4x", found)[0] != fcntl.F_UNLCK:
                    return True
    return False


def is_copy_without_wal(path: Path) -> bool:
    """Return whether the file is in the format for a -wal and has none beside it."""
    return path.is_file() and not Path(f"{path}-wal").exists() and not _is_rollback_format(path)


def is_read_only(path: Path) -> bool:
    """Return whether an existing journal cannot be written by this user.

    JournalError: the journal can be written and its -wal cannot, which belongs to another user.
    """
    if not path.exists():
        return False
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        return True
    for each in (Path(f"{path}-wal"), Path(f"{path}-shm")):
        if each.exists() and not os.access(each, os.R_OK | os.W_OK):
            raise JournalError(
                f"the journal {path} can be written, but {each.name} belongs to another user "
                f"({_owner(each)}) who has opened the journal. Ask that user to close it, or to "
                "give you the right to write that file; do not delete it, it holds messages"
            )
    return False


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, NotImplementedError, OSError):
        return f"number {path.stat().st_uid}"


def signature(path: Path | None) -> tuple[object, ...]:
    """Return what changes when a journal is written or opened by another process."""
    if path is None or not path.exists():
        return (None, False)
    status = path.stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns), Path(f"{path}-wal").exists()


def copy_database(connection: sqlite3.Connection, path: Path) -> None:
    """Copy an open database to a file that is new and needs no -wal."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # SQLite would not say why it cannot make the file.
        unfinished.touch(_MODE)
        with closing(sqlite3.connect(unfinished)) as target:
            try:
                connection.backup(target)
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from exc
                raise
            target.execute("PRAGMA journal_mode = DELETE")
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        # unlike rename() this replaces no file
        path.hardlink_to(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)


def _header(path: Path) -> bytes:
    """Return the header of a file of SQLite; empty if it is none, or cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        return header if len(header) == _HEADER_BYTES and header.startswith(_MAGIC) else b""
    return b""


def _is_rollback_format(path: Path) -> bool:
    """Return whether the header says that no -wal belongs to the file, as in backups."""
    header = _header(path)
    return bool(header) and header[_FORMAT_OFFSET] == _ROLLBACK_FORMAT


def _is_incomplete(path: Path) -> bool:
    """Return whether the file has fewer bytes than its header says."""
    header = _header(path)
    if not header or header[_COUNTER] != header[_COUNTER_OF_PAGES]:
        return False
    page_bytes = int.from_bytes(header[_PAGE_BYTES])
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    return _size_bytes(path) < page_bytes * int.from_bytes(header[_PAGES])


def warn_of_network(path: Path, mounts: Path) -> None:
    """Warn if the journal is on a network file system. Systems without that list get no warning."""
    kind = file_system_of(path, mounts)
    if kind in _NETWORK:
        warnings.warn(
            f"the journal {path} is on a {kind} file system, where a crash or a second kernel can "
            "damage an SQLite file. Choose a local place with journal=..., or a PostgreSQL URL",
            NetworkFileSystemWarning,
            stacklevel=6,
        )
