// Command cpupdate makes the updates that the control-plane bench asks for: each POST applies one target whose description
// carries the token. It keeps its connection, as the bench's own servers do; a `sluice apply` for each would be timed too.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const payload = 1024 // bytes of a target, as of a resource of the bench's own servers

func main() {
	log.SetFlags(0)
	log.SetPrefix("cpupdate: ")
	admin := flag.String("admin", "", "HOST:PORT of the admin port, without TLS")
	token := flag.String("token-file", "", "file with an admin token")
	tenant := flag.String("tenant", "t0", "")
	name := flag.String("target", "", "BACKEND/TARGET to change; it must be there")
	ops := flag.String("ops", "", "HOST:PORT of the operations port, to read the live memory from")
	heap := flag.String("heap", "", "file for the live memory in bytes, as it is now and at the first update")
	flag.Parse()
	if err := run(*admin, *token, *tenant, *name, *ops, *heap); err != nil {
		log.Fatal(err)
	}
}

func run(admin, tokenFile, tenant, name, ops, heapFile string) error {
	secret, err := os.ReadFile(tokenFile)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := adminv1.NewAdminClient(conn)
	ctx := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+strings.TrimSpace(string(secret)))
	object, err := client.Get(ctx, &adminv1.GetRequest{Tenant: tenant, Kind: "target", Name: name})
	if err != nil {
		return fmt.Errorf("get target %s of tenant %s: %w", name, tenant, err)
	}
	idle, err := liveBytes(ops)
	if err != nil {
		return err
	}
	u := &updater{ctx: ctx, client: client, tenant: tenant, object: object, measure: func() error { return writeHeap(heapFile, idle, ops) }}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	server := &http.Server{Handler: u, ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(listener)
}

type updater struct {
	ctx    context.Context // with the token
	client adminv1.AdminClient
	tenant string

	mu      sync.Mutex
	object  *adminv1.Object
	measure func() error // once: at the first update all proxies are there, and that update is a warm-up
}

// ServeHTTP does one update.
func (u *updater) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.update(r.Body); err != nil {
		log.Print(err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (u *updater) update(body io.Reader) error {
	var asked struct{ Token string }
	if err := json.NewDecoder(body).Decode(&asked); err != nil {
		return err
	}
	if u.measure != nil {
		if err := u.measure(); err != nil {
			return err
		}
		u.measure = nil
	}
	u.object.GetTarget().Description = asked.Token + strings.Repeat("x", max(0, payload-len(asked.Token)-80))
	_, err := u.client.Apply(u.ctx, &adminv1.ApplyRequest{Tenant: u.tenant, Single: true, Objects: []*adminv1.Object{u.object}})
	return err
}

func writeHeap(file string, idle int64, ops string) error {
	full, err := liveBytes(ops)
	if err != nil {
		return err
	}
	return os.WriteFile(cmp.Or(file, os.DevNull), fmt.Appendf(nil, "%d %d\n", idle, full), 0o644)
}

var memStats = regexp.MustCompile(`(?m)^# (HeapAlloc|Stack) = (\d+)`)

// liveBytes is what heap and stacks of the control plane hold after a collection; 0 if no operations port was given.
func liveBytes(ops string) (int64, error) {
	if ops == "" {
		return 0, nil
	}
	answer, err := http.Get("http://" + ops + "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err
	}
	found := memStats.FindAllSubmatch(text, -1)
	if len(found) != 2 {
		return 0, fmt.Errorf("http://%s/debug/pprof/heap tells no HeapAlloc and Stack", ops)
	}
	total := int64(0)
	for _, m := range found {
		var n int64
		if _, err := fmt.Sscan(string(m[2]), &n); err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
