"""Imported first by the process that is forked.

Imports make many objects and hardly any garbage: looking for it took a fifth of their time. An interrupt is for the
process that waits for this one; it would print where the imports are.
"""

from __future__ import annotations

import gc
import signal

gc.disable()
signal.signal(signal.SIGINT, signal.SIG_IGN)
