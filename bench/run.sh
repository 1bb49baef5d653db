#!/usr/bin/env bash
# Side by side with peers, in one run, on loopback alone. Each loop is bounded in count and time.
#
#   bench/run.sh mcp [SCENARIOS]   the data plane against agentgateway (regular expression; default call|call-stateless|init|list-10x100)
#   bench/run.sh cp  [N] [R]       the control plane against go-control-plane's linear cache: N proxies, R resources (default 1000 1000)
#   bench/run.sh                   both
#
# What it drives is not part of this repository and is found through variables:
#   MCPLOAD        folder of the load generator's programs: compare, load, upstream
#   AGENTGATEWAY   the peer's program
#   CPBENCH        the control-plane bench's program
# Settings: ROUNDS (3), DURATION (4s), UPDATES (20), OUT (results; default a new folder).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(dirname "$here")"
OUT="${OUT:-$(mktemp -d)}"
mkdir -p "$OUT"
export SLUICE="$repo/bin/sluice"
die() { echo "bench: $*" >&2; exit 2; }
need() { [ -n "${!1:-}" ] && [ -e "${!1}" ] || die "$1 is not set: $2"; }

mcp() {
  need MCPLOAD "the folder of the load generator's programs (compare, load, upstream)"
  need AGENTGATEWAY "the peer's program"
  "$MCPLOAD/compare" -bin "$MCPLOAD" -endpoints "$here/endpoints.json" -rounds "${ROUNDS:-3}" -duration "${DURATION:-4s}" \
    -scenarios "${1:-call|call-stateless|init|list-10x100}" -only "${ONLY:-.}" -out "$OUT/mcp.jsonl"
}

pids=()
cleanup() { for p in ${pids[@]+"${pids[@]}"}; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done; }
trap cleanup EXIT

cp_() {
  local proxies="${1:-1000}" resources="${2:-1000}" updates="${UPDATES:-20}" dir="$OUT/controlplane"
  need CPBENCH "the control-plane bench's program"
  "$CPBENCH" run -cache linear -proxies "$proxies" -resources "$resources" -updates "$updates" -tls -burst 0 -out "$OUT/cp.jsonl"

  rm -rf "$dir"; mkdir -p "$dir"
  "$repo/bin/sluice-controlplane" --data-dir "$dir/data" --admin-addr 127.0.0.1:0 --xds-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0 >"$dir/ready" 2>"$dir/log" &
  pids+=($!)
  local pid=$! _
  for _ in $(seq 1 100); do [ -s "$dir/ready" ] && break; sleep 0.1; done
  local admin xds
  admin="$(sed -n 's/.*"admin":"\([^"]*\)".*/\1/p' "$dir/ready")"
  xds="$(sed -n 's/.*"xds":"\([^"]*\)".*/\1/p' "$dir/ready")"
  [ -n "$admin" ] && [ -n "$xds" ] || die "the control plane did not start: $(cat "$dir/log")"
  export SLUICE_ADMIN="http://$admin" SLUICE_TOKEN="@$dir/data/admin.token"
  "$SLUICE" tenant create t0 >/dev/null
  "$SLUICE" group set bench t0 >/dev/null
  # Each target is two resources, itself and its binding; a handful stand beside them.
  local targets=$((resources / 2))
  {
    printf 'binds:\n- port: 3000\n  listeners:\n  - name: l\n    routes:\n    - name: r\n      backends:\n      - mcp:\n          name: b\n          targets:\n'
    for i in $(seq 0 $((targets - 1))); do printf '          - name: t%d\n            description: %s\n            mcp: {host: "https://t%d.example.com/mcp"}\n' "$i" "$(printf 'x%.0s' $(seq 1 900))" "$i"; done
  } >"$dir/config.yaml"
  "$SLUICE" apply --tenant t0 -f "$dir/config.yaml" >/dev/null
  "$SLUICE" token cert --group bench --count "$proxies" --out "$dir/certs" >/dev/null
  cat >"$dir/update" <<UPDATE
#!/usr/bin/env bash
exec "$SLUICE" apply --tenant t0 -f - >/dev/null <<YAML
kind: Target
name: b/t0
spec: {backend: b, description: "\$CPBENCH_TOKEN", mcp: {host: "https://t0.example.com/mcp"}}
YAML
UPDATE
  chmod +x "$dir/update"
  "$CPBENCH" run -target "$xds" -server-pid "$pid" -proxies "$proxies" -tenants 1 -resources "$resources" -updates "$updates" -burst 0 \
    -type-url type.googleapis.com/sluice.xds.v1.Config -type-url type.googleapis.com/sluice.xds.v1.Secret \
    -tls-ca "$dir/certs/ca.pem" -tls-cert "$dir/certs/proxy-{i}.pem" -tls-key "$dir/certs/proxy-{i}.key" \
    -update-cmd "$dir/update" -out "$OUT/cp.jsonl"
  "$CPBENCH" table "$OUT/cp.jsonl"
}

case "${1:-all}" in
  mcp) shift; mcp "$@" ;;
  cp) shift; cp_ "$@" ;;
  all) mcp; cp_ ;;
  *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
echo "results in $OUT"
