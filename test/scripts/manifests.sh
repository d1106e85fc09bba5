#!/usr/bin/env bash
# Prints manifests/tenure.yaml: the chart rendered with manifests/values.yaml. HELM
# names another Helm than bin/helm.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$root/test/scripts/chart.sh" "$work"
cat <<'EOF'
# Tenure without Helm. Change the lines marked CHANGE, then: kubectl apply -f tenure.yaml
# Rendered from charts/tenure by `make manifests`.
EOF
"${HELM:-$root/bin/helm}" template tenure "$work/tenure" --namespace kube-system --values "$root/manifests/values.yaml" |
	sed -e '/helm.sh\/chart:/d' -e 's/managed-by: "Helm"/managed-by: "kubectl"/' -e '/^# Source: /d' -e '/\.example\.com/s/$/ # CHANGE/'
