"""How a stage is spread over a cluster: Ray, object storage, restarts."""

import os

# `tasks.cluster.connected` alone joins a cluster: Ray would do it by itself wherever it is spoken to, also in what is
# left of a job that was cancelled, which would then live on. Set before Ray is imported.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
