"""What holds for every test."""

from __future__ import annotations

import signal

# A shell without job control starts what it puts in the background with Ctrl-C ignored, and Python
# and every process that a test starts would inherit that. Some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
