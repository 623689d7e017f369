"""The first import of the process that workers are forks of (:func:`.workers.import_once`), and of nothing else.

Imports make many objects and hardly any garbage: looking for it took a fifth of their time. A fork looks for it again.
"""

from __future__ import annotations

import gc

gc.disable()
