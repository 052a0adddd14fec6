#!/usr/bin/env bash
# Checks mks2 on a machine with one NVIDIA GPU and Python with PyTorch 2.11. No network, no Rust.
#
#     ./check.sh            PYTHON=/path/to/python ./check.sh to choose the interpreter
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python3 || command -v python || true)}

stop() {
    printf 'error: %s\n  why: %s\n  fix: %s\n' "$1" "$2" "$3" >&2
    exit 6
}

[ -n "$python" ] || stop "no Python was found" "neither python3 nor python is in PATH" \
    "set PYTHON to an interpreter with torch 2.11"

# Version, folder of libtorch, and the folders of the NVIDIA libraries that came with it.
mapfile -t found < <("$python" - <<'PY'
import glob, os, site, sys
try:
    import torch
except ImportError as error:
    sys.exit(f"torch cannot be imported: {error}")
root = os.path.dirname(torch.__file__)
print(torch.__version__)
print(os.path.join(root, "lib"))
packages = os.path.dirname(root)
for folder in sorted(glob.glob(os.path.join(packages, "nvidia", "**", "lib"), recursive=True)):
    print(folder)
PY
) || true
[ "${#found[@]}" -ge 2 ] || stop "PyTorch was not found" "$python cannot import torch" \
    "set PYTHON to an interpreter with torch 2.11"
version=${found[0]}
case $version in
2.11.*) ;;
*) stop "PyTorch is $version" "this package is built for 2.11" "install torch 2.11.0" ;;
esac

libraries=$(IFS=:; echo "${found[*]:1}")
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LIBTORCH=${found[1]%/lib}
# cuBLAS repeats its bits with a fixed workspace alone.
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}

echo "PyTorch $version at ${found[1]}"
command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

work=${WORK:-$(mktemp -d)}
echo "working folder: $work"
mkdir -p "$work/bin"
cd "$work"
for name in mks2 mks2-worker; do
    gzip --decompress --stdout "$here/bin/$name.gz" >"bin/$name"
    chmod +x "bin/$name"
done
bin/mks2 data import "$here"/corpus/emoji-*.tar --out data/emoji
for part in train test; do
    bin/mks2 data import "$here/corpus/color-questions-$part.jsonl" --out "data/colors-$part"
done

# The job's corpora are relative to its own folder.
mkdir -p examples/emoji
cp "$here/job.toml" examples/emoji/job.toml
bin/mks2 train examples/emoji/job.toml --run runs/gpu --workers 1 --set device=cuda ||
    echo "the run failed with exit code $?; the checks go on" >&2
exec bin/mks2-worker gpu-check --job examples/emoji/job.toml "$@"
