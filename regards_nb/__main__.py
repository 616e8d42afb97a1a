"""Starts `regards-nb`: until its modules are loaded, Ctrl-C ends the process without a word."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line; return the exit code."""
    # The imports take two seconds, and a traceback through them tells a user nothing.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from regards_nb import cli

    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
