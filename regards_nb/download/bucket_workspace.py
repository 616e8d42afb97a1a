"""The workspace of one download into ``s3://bucket/prefix``.

Files are staged and verified in a scratch folder of this computer. Each is then created in the
bucket by one conditional request, and its staged file is removed: no object is ever incomplete,
and none is replaced but a cut one of ours.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from regards_nb.download.bucket import Bucket, split_url
from regards_nb.download.workspace import Workspace

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from regards_nb.download.workspace import Content

#: The keys of the objects that a process is uploading in parts, one a line.
_UPLOADS = "uploads"


class BucketWorkspace(Workspace):
    """A prefix of a bucket, for the time of one download into it.

    That the bucket cannot be listed is known, as WorkspaceError, before anything is fetched.
    """

    parallel, batch_files = 8, 1
    #: Staged files that wait or are uploaded take so much of the scratch disk, and one file more.
    waiting_bytes = 256 << 20
    other_folder = "name another scratch folder in the variable TMPDIR"

    def __init__(self, url: str, order_id: int, *, stop: threading.Event | None = None) -> None:
        bucket, self._prefix = split_url(url)
        self._folder = f"{url}/"
        self._what = f"order {order_id}" if order_id else ""
        self._bucket = Bucket(bucket, self._what, stop)
        # A name that is in use is known without sending the file. It also keeps such names where
        # the server ignores the condition of a creation.
        self._names = set(self._bucket.list(self._prefix))
        self._unfinished: set[str] = set()
        super().__init__(Path(tempfile.gettempdir()), order_id)
        for key in self._unfinished:
            self._bucket.abort_uploads(key, is_ours=True)

    def path_of(self, name: str) -> str:
        """Return the URL of a file with this final name."""
        return self._folder + name

    def prepare(self, contents: Sequence[Content]) -> Sequence[Content]:
        """Return the contents: small files are uploaded from memory."""
        return contents

    def create(self, name: str, content: Content) -> bool:
        """Create an object with a content; return False where the name is in use."""
        return name not in self._names and self._upload(name, content)

    def _upload(self, name: str, content: Content, *, replaces: str | None = None) -> bool:
        key = self._key(name)
        source = content.data if content.path is None else content.path
        if content.size_bytes > self._bucket.largest_put_bytes:
            self._note_upload(key)
            self._bucket.abort_uploads(key, is_ours=False)
        is_done = self._bucket.create(
            key, source, content.size_bytes, content.md5, replaces=replaces
        )
        self._names.add(name)
        if is_done:
            content.discard()
        return is_done

    def has(self, name: str, content: Content, *, is_suspect: bool) -> bool:
        """Return whether the object with this final name has this content."""
        key = self._key(name)
        return self._bucket.has(key, content.size_bytes, content.md5, reads=is_suspect)

    def replace_cut(self, name: str, content: Content) -> bool:
        """Replace an object of ours that holds only the beginning of this content."""
        key = self._key(name)
        found = self._bucket.look(key)
        if found is None or found.size_bytes >= content.size_bytes:
            return False
        if not content.begins_with(self._bucket.blocks(key)):
            return False
        # After a lost answer the object is the new one, and is no more the one to be replaced.
        return self._upload(name, content, replaces=found.e_tag) or self.has(
            name, content, is_suspect=False
        )

    def complete_batch(self) -> None:
        """Return: an object is durable when it is created."""

    def needed_bytes(self, sizes: Sequence[int], *, keeps_zip: bool) -> int:
        """Return how much room files of these sizes need in the scratch folder."""
        # a kept zip is staged as a whole; else one file may wait beyond the limit, and one is
        # being written
        total_bytes = sum(sizes)
        most_bytes = self.waiting_bytes + 2 * max(sizes, default=0)
        return total_bytes if keeps_zip else min(total_bytes, most_bytes)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _note_upload(self, key: str) -> None:
        """Write down which upload a later download is to abort if this process dies."""
        with (self.staging / _UPLOADS).open("a", encoding="utf-8") as file:
            file.write(f"{self._folder}\n{key}\n")

    def _remove_orphan(self, folder: Path) -> None:
        """Remove the staging folder of a process that has died while it uploaded to this prefix."""
        with suppress(OSError):
            lines = (folder / _UPLOADS).read_text(encoding="utf-8").splitlines()
            self._unfinished.update(
                key
                for url, key in zip(lines[::2], lines[1::2], strict=False)
                if url == self._folder
            )
        super()._remove_orphan(folder)
