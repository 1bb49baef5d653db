# Shared by the scripts beside it, which set `repo`, `OUT`, `CACHE`, `pids` and `die` before they source it.

# Suites and inspectors need node >= 22 (fs.globSync); npm itself carries one where the system's is older.
need_node() {
  local major plat
  major="$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0)"
  NODE="$(command -v node || true)"
  if [ "$major" -lt 22 ]; then
    [ "$major" -gt 0 ] || die "node and npm are needed (any version; 22 is fetched from npm)"
    plat="$(node -p 'process.platform+"-"+process.arch')"
    NODE="$CACHE/node22/node_modules/node-$plat/bin/node"
    [ -x "$NODE" ] || npm install --prefix "$CACHE/node22" --no-audit --no-fund --silent "node-$plat@22" >&2 || die "node-$plat@22 does not install from npm"
  fi
  PATH="$(dirname "$NODE"):$PATH"
  export PATH NODE
}

# npm_package NAME@VERSION [NAME@VERSION…]: installs it once, with others beside it, and prints its folder.
npm_package() {
  local name="${1%@*}" dir
  dir="$CACHE/npm/$(echo "$1" | tr '/@' '__')"
  if [ ! -d "$dir/node_modules/$name" ]; then
    mkdir -p "$dir"
    npm install --prefix "$dir" --no-audit --no-fund --silent "$@" >&2 || die "$1 does not install from npm"
  fi
  echo "$dir/node_modules/$name"
}

# go_sdk_binary PACKAGE VERSION: builds one of go-sdk's own programs from its module and prints its path.
go_sdk_binary() {
  local bin src
  bin="$CACHE/$(basename "$1")-$2"
  if [ ! -x "$bin" ]; then
    src="$(cd "$CACHE" && GOFLAGS=-mod=mod go mod download -json "github.com/modelcontextprotocol/go-sdk@$2" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",$/\1/p')"
    [ -d "$src/$1" ] || die "go-sdk $2 has no $1"
    (cd "$src" && GOFLAGS= GOWORK=off go build -o "$bin" "./$1") || die "$1 does not build"
  fi
  echo "$bin"
}

build_sluice() {
  SLUICE="$repo/bin/sluice"
  (cd "$repo" && go build -o bin/sluice ./cli/cmd/sluice) || die "sluice does not build"
}

free_port() { "$NODE" -e 'const s=require("net").createServer();s.listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})'; }

# start NAME COMMAND…: in the background, its output in OUT/NAME.log; ended by the script's own cleanup.
start() {
  local name="$1"; shift
  "$@" >"$OUT/$name.log" 2>&1 &
  pids+=($!)
}

# listening PORT: waits up to 30 s.
listening() {
  local _
  for _ in $(seq 1 300); do
    if (exec 3<>"/dev/tcp/localhost/$1") 2>/dev/null; then return 0; fi
    sleep 0.1
  done
  tail -20 "$OUT"/*.log >&2
  die "nothing listens on port $1"
}
