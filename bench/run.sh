#!/usr/bin/env bash
# Side by side with peers, in one run, on loopback alone. Each loop is bounded in count and time.
#
#   bench/run.sh mcp [SCENARIOS]   the data plane against agentgateway (regular expression; default call|call-stateless|init|list-10x100)
#   bench/run.sh bridges [SCENARIOS]   calls to targets of the other era beside calls to those of the same (default call|call-stateless|init)
#   bench/run.sh cp  [N] [R]       the control plane against go-control-plane's linear cache: N proxies, R resources (default 1000 1000)
#   bench/run.sh                   all
#
# What it drives is not part of this repository and is found through variables:
#   MCPLOAD        folder of the load generator's programs: compare, load, upstream
#   AGENTGATEWAY   the peer's program
#   CPBENCH        the control-plane bench's program
# Settings: ROUNDS (3), DURATION (4s), UPDATES (20), OUT (results; default a new folder), PROFILE (file for the control plane's
# CPU profile during the updates).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(dirname "$here")"
OUT="${OUT:-$(mktemp -d)}"
mkdir -p "$OUT"
export SLUICE="$repo/bin/sluice"
die() { echo "bench: $*" >&2; exit 2; }
need() { [ -n "${!1:-}" ] && [ -e "${!1}" ] || die "$1 is not set: $2"; }

compare() { # ENDPOINTS SCENARIOS
  need MCPLOAD "the folder of the load generator's programs (compare, load, upstream)"
  "$MCPLOAD/compare" -bin "$MCPLOAD" -endpoints "$here/$1.json" -rounds "${ROUNDS:-3}" -duration "${DURATION:-4s}" \
    -scenarios "$2" -only "${ONLY:-.}" -out "$OUT/$1.jsonl"
}

mcp() {
  need AGENTGATEWAY "the peer's program"
  compare endpoints "${1:-call|call-stateless|init|list-10x100}"
}

bridges() { compare bridges "${1:-call|call-stateless|init}"; }

pids=()
cleanup() { for p in ${pids[@]+"${pids[@]}"}; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done; }
trap cleanup EXIT

cp_() {
  local proxies="${1:-1000}" resources="${2:-1000}" updates="${UPDATES:-20}" dir="$OUT/controlplane" extra=()
  need CPBENCH "the control-plane bench's program"
  [ -x "$repo/bin/sluice-controlplane" ] || die "bin/sluice-controlplane is not there: run make build"
  if [ "$((proxies * resources))" -gt 2000000 ]; then extra=(-gentle -connect-workers 32); fi # all at once would be gigabytes of sockets
  go build -C "$repo" -o "$OUT/cpupdate" ./bench/cpupdate
  "$CPBENCH" run -cache linear -proxies "$proxies" -resources "$resources" -updates "$updates" -tls -burst 0 \
    ${extra[@]+"${extra[@]}"} -out "$OUT/cp.jsonl"

  rm -rf "$dir"; mkdir -p "$dir"
  "$repo/bin/sluice-controlplane" --data-dir "$dir/data" --admin-addr 127.0.0.1:0 --xds-addr 127.0.0.1:0 --ops-addr 127.0.0.1:0 >"$dir/ready" 2>"$dir/log" &
  local pid=$! admin xds ops update
  pids+=("$pid")
  wait_for "$dir/ready" "the control plane did not start: $dir/log says why"
  admin="$(address admin "$dir/ready")" xds="$(address xds "$dir/ready")" ops="$(address ops "$dir/ready")"
  export SLUICE_ADMIN="http://$admin" SLUICE_TOKEN="@$dir/data/admin.token"
  "$SLUICE" tenant create t0 >/dev/null
  "$SLUICE" group set bench t0 >/dev/null
  config "$((resources / 2))" >"$dir/config.yaml"
  "$SLUICE" apply --tenant t0 -f "$dir/config.yaml" >/dev/null
  "$SLUICE" token cert --group bench --count "$proxies" --out "$dir/certs" >/dev/null
  "$OUT/cpupdate" -admin "$admin" -token-file "$dir/data/admin.token" -tenant t0 -target b/t0 -ops "$ops" -heap "$dir/heap" >"$dir/update" 2>"$dir/update.log" &
  pids+=($!)
  wait_for "$dir/update" "the updater did not start: $dir/update.log says why"
  read -r update <"$dir/update"
  if [ -n "${PROFILE:-}" ]; then (until [ -s "$dir/heap" ]; do sleep 0.1; done; curl -s -o "$PROFILE" "http://$ops/debug/pprof/profile?seconds=8") & fi
  "$CPBENCH" run -target "$xds" -server-pid "$pid" -proxies "$proxies" -tenants 1 -resources "$resources" -updates "$updates" -burst 0 \
    ${extra[@]+"${extra[@]}"} \
    -type-url type.googleapis.com/sluice.xds.v1.Config -type-url type.googleapis.com/sluice.xds.v1.Secret \
    -tls-ca "$dir/certs/ca.pem" -tls-cert "$dir/certs/proxy-{i}.pem" -tls-key "$dir/certs/proxy-{i}.key" \
    -update-url "http://$update/" -out "$OUT/cp.jsonl"
  awk -v n="$proxies" '{printf "live memory    %.1f MiB without proxies; %.1f KiB per proxy (heap and stacks after a collection)\n", $1/1048576, ($2-$1)/1024/n}' "$dir/heap"
  "$CPBENCH" table "$OUT/cp.jsonl"
}

# config makes N targets in one backend. Each is two resources, itself and its binding, of 0.9 KiB on average (a file has its limit).
config() {
  local i pad
  pad="$(printf 'x%.0s' $(seq 1 1500))"
  printf 'binds:\n- port: 3000\n  listeners:\n  - name: l\n    routes:\n    - name: r\n      backends:\n      - name: b\n        mcp:\n          targets:\n'
  for ((i = 0; i < $1; i++)); do
    printf '          - {name: t%d, description: %s, mcp: {host: "https://t%d.example.com/mcp"}}\n' "$i" "$pad" "$i"
  done
}

wait_for() { # FILE MESSAGE
  local _
  for _ in $(seq 1 100); do [ -s "$1" ] && return; sleep 0.1; done
  die "$2"
}

address() { sed -n 's/.*"'"$1"'":"\([^"]*\)".*/\1/p' "$2"; } # NAME FILE

case "${1:-all}" in
  mcp) shift; mcp "$@" ;;
  bridges) shift; bridges "$@" ;;
  cp) shift; cp_ "$@" ;;
  all) mcp; bridges; cp_ ;;
  *) sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
echo "results in $OUT"
