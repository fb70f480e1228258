#!/bin/bash
# Unpacks ctr and containerd 2 from Debian sid, for the tests of what their clients ask for since
# version 2: transfers and streams. `containerd` is the oracle of the same scenarios.
set -euo pipefail
exec "$(dirname "$0")/unpack-program.sh" "${GANTRY_CTR2:-/var/cache/gantry-ctr2}" sid containerd \
    usr/bin/ctr usr/bin/containerd
