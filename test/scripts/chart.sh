#!/usr/bin/env bash
# Puts the chart together in DIR/tenure: charts/tenure and in it the driver's own
# chart, from the driver's Go module in test/go.mod.
#
#   chart.sh DIR
set -euo pipefail
dir=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
driver=sigs.k8s.io/secrets-store-csi-driver

go -C "$root/test" mod download "$driver"
source=$(go -C "$root/test" list -m -f '{{.Dir}}' "$driver")
rm -rf "$dir/tenure"
mkdir -p "$dir"
cp -r "$root/charts/tenure" "$dir/tenure"
mkdir -p "$dir/tenure/charts"
# Modules in the cache are read-only.
cp -r --no-preserve=mode "$source/charts/secrets-store-csi-driver" "$dir/tenure/charts/"
