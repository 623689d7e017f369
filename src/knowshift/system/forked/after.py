"""Imported last by the process that is forked: forks are as any process, and no collection looks at what is imported.

They may also be another program's, which uses the same process.
"""

from __future__ import annotations

import gc
import signal

gc.freeze()
gc.enable()
signal.signal(signal.SIGINT, signal.default_int_handler)
