"""What the process that workers are forks of imports before and after all else (:mod:`knowshift.system.workers`)."""
