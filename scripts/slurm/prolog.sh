#!/usr/bin/env bash
# Prolog= of slurm.conf: does this node run the stack? If not it is drained with the reason, and the
# job goes back to the queue (docs/slurm.md#health-checks).
set -uo pipefail

# shellcheck source=scripts/slurm/health.sh
. "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/health.sh" || exit 0
health_script prolog
