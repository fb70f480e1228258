#!/bin/bash
# Unpacks criu 4 from Debian trixie for the tests that checkpoint and restore: the criu of this
# machine's own release does not know the vDSO of newer kernels. Put the directory first on PATH, or
# name its `criu` where a runtime can be told.
set -euo pipefail
exec "$(dirname "$0")/unpack-program.sh" "${GANTRY_CRIU:-/var/cache/gantry-criu}" trixie criu \
    usr/sbin/criu
