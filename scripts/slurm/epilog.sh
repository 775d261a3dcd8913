#!/usr/bin/env bash
# Epilog= of slurm.conf: did the job leave the node as it was? A bad one is drained with the reason
# before the next job comes (docs/slurm.md#health-checks).
set -uo pipefail

# shellcheck source=scripts/slurm/health.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/health.sh" || exit 0
health_script epilog
