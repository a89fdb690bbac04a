#!/bin/sh
# A flow run drives Ray from a node of the cluster: where RAY_ADDRESS is set, this container joins it, without CPUs.
# The Ray nodes themselves are started with `ray start` and leave RAY_ADDRESS unset.
set -eu
if [ -n "${RAY_ADDRESS:-}" ]; then
  ray start --address "$RAY_ADDRESS" --num-cpus 0 --num-gpus 0 --object-store-memory "${RAY_DRIVER_STORE:-1000000000}" \
    --min-worker-port 10002 --max-worker-port 19999 >/dev/null
fi
exec "$@"
