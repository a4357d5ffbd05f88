#!/usr/bin/env bash
# What a GPU can tell, in one report: bash tools/gpu/run.sh first | tests | profile [options]; --help lists them.
#
# Nothing is installed or downloaded. PYTHON is the Python that holds torch (default python3), FASTRNN_LIBRARY a library
# built beforehand (make wheel-cuda), OUT the folder for report.md and the logs (default build/gpu).
set -u
cd "$(dirname "$0")/../.." || exit 2
command -v "${PYTHON:-python3}" > /dev/null || {
  echo "fastrnn: no ${PYTHON:-python3}: set PYTHON to the Python that holds torch" >&2
  exit 2
}
exec "${PYTHON:-python3}" tools/gpu/run.py "$@"
