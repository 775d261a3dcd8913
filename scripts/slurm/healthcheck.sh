#!/usr/bin/env bash
# HealthCheckProgram= of slurm.conf: the same check from time to time, also of nodes without jobs. It
# takes back what it drained when the node is well again (docs/slurm.md#health-checks).
set -uo pipefail

# shellcheck source=scripts/slurm/health.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/health.sh" || exit 0
health_script healthcheck
