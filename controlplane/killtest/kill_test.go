// Package killtest kills the real control plane at any moment, under load, and looks whether it kept its word: no
// acknowledged apply is lost, no apply is there in part, and the file opens.
package killtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sluicegate/sluice/controlplane/store"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const (
	writers    = 6 // of two tenants
	usualKills = 6 // SLUICE_KILLS says otherwise
)

func TestKill(t *testing.T) {
	kills := usualKills
	if text := os.Getenv("SLUICE_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatalf("SLUICE_KILLS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d kills", seed, kills)
	random := rand.New(rand.NewPCG(seed, 0))

	dir := t.TempDir()
	program := filepath.Join(dir, "sluice-controlplane")
	build := exec.Command("go", "build", "-o", program, "github.com/sluicegate/sluice/controlplane/cmd/sluice-controlplane")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	data := filepath.Join(dir, "data")
	load := newLoad()
	for kill := range kills {
		checkFile(t, filepath.Join(data, "store.db"))
		p := start(t, program, data)
		if random.IntN(8) == 0 { // sometimes while it starts
			time.Sleep(time.Duration(random.IntN(40)) * time.Millisecond)
			p.kill()
			continue
		}
		client := p.ready(data)
		if client == nil {
			t.Fatalf("start %d: the control plane does not start any more:\n%s", kill, p.stderr.String())
		}
		load.check(t, client)
		if t.Failed() {
			t.Fatalf("after kill %d", kill)
		}
		stop := load.write(client)
		time.Sleep(time.Duration(random.IntN(120)) * time.Millisecond)
		p.kill()
		stop()
	}
	p := start(t, program, data)
	client := p.ready(data)
	if client == nil {
		t.Fatalf("the last start: %s", p.stderr.String())
	}
	load.check(t, client)
	p.kill()
	checkFile(t, filepath.Join(data, "store.db"))
	t.Logf("%d applies were acknowledged", load.total())
	if load.total() < kills {
		t.Errorf("%d applies in %d lives: the test tests little", load.total(), kills)
	}
}

// checkFile walks all pages of the store.
func checkFile(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); os.IsNotExist(err) {
		return
	}
	b, err := store.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Check(); err != nil {
		t.Errorf("check %s: %v", path, err)
	}
}

type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr *strings.Builder
}

func start(t *testing.T, program, data string) *process {
	t.Helper()
	p := &process{t: t, stderr: &strings.Builder{}}
	p.cmd = exec.Command(program, "--data-dir", data, "--admin-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0")
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // it may be dead already
	p.cmd.Wait()         //nolint:errcheck // it was killed
}

// ready waits for the line on stdout, and returns the first admin's client; nil if the process ended before.
func (p *process) ready(data string) adminv1.AdminClient {
	p.t.Helper()
	line, err := p.stdout.ReadString('\n')
	if err == io.EOF {
		p.cmd.Wait() //nolint:errcheck // its stderr is shown
		return nil
	}
	var at struct{ Admin string }
	text, ok := strings.CutPrefix(line, "ready ")
	if err != nil || !ok || json.Unmarshal([]byte(text), &at) != nil {
		p.t.Fatalf("stdout: %q, %v", line, err)
	}
	token, err := os.ReadFile(filepath.Join(data, "admin.token"))
	if err != nil {
		p.t.Fatal(err)
	}
	bearer := "Bearer " + strings.TrimSpace(string(token))
	conn, err := grpc.NewClient(at.Admin, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(metadata.AppendToOutgoingContext(ctx, "authorization", bearer), method, req, reply, cc, opts...)
		}))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return adminv1.NewAdminClient(conn)
}

// load is what the writers were told.
type load struct {
	mu     sync.Mutex
	acked  [writers]int // last number that was acknowledged
	tried  [writers]int // last number that was sent
	heads  map[string]int64
	tenant [writers]string
}

func newLoad() *load {
	l := &load{heads: map[string]int64{}}
	for i := range l.tenant {
		l.tenant[i] = []string{"default", "acme"}[i%2]
	}
	return l
}

func (l *load) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := 0
	for _, n := range l.acked {
		sum += n
	}
	return sum
}

func name(writer int, half string) string { return fmt.Sprintf("w%d-%s", writer, half) }

// write starts all writers; the function that it returns waits until they are over, which is when the process is gone.
func (l *load) write(client adminv1.AdminClient) (wait func()) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	for w := range writers {
		wg.Go(func() {
			for l.one(ctx, client, w) == nil {
			}
		})
	}
	return func() { wg.Wait(); cancel() }
}

// one applies the next number of a writer: to two objects at once, with a secret that is sealed on its way.
func (l *load) one(ctx context.Context, client adminv1.AdminClient, w int) error {
	l.mu.Lock()
	l.tried[w]++
	n := l.tried[w]
	l.mu.Unlock()
	backend := func(half string) *adminv1.Object {
		return &adminv1.Object{Name: name(w, half), Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{Description: strconv.Itoa(n)}}}
	}
	value := &policyv1.Credential{Source: &policyv1.Credential_Value{Value: strconv.Itoa(n)}}
	resp, err := client.Apply(ctx, &adminv1.ApplyRequest{Tenant: l.tenant[w], Single: true, Objects: []*adminv1.Object{
		backend("a"), backend("b"), {Name: name(w, "s"), Spec: &adminv1.Object_Secret{Secret: &adminv1.Secret{Value: value}}}}})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[w] = n
	l.heads[l.tenant[w]] = max(l.heads[l.tenant[w]], resp.GetRevision())
	return nil
}

// check holds what is stored against what was acknowledged.
func (l *load) check(t *testing.T, client adminv1.AdminClient) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := client.CreateTenant(ctx, &adminv1.CreateTenantRequest{Name: "acme"}); err != nil && status.Code(err) != codes.AlreadyExists {
		t.Fatalf("create tenant: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range writers {
		got := map[string]int{}
		for _, half := range []string{"a", "b"} {
			o, err := client.Get(ctx, &adminv1.GetRequest{Tenant: l.tenant[w], Kind: "backend", Name: name(w, half)})
			if err != nil && status.Code(err) != codes.NotFound {
				t.Fatalf("get: %v", err)
			}
			got[half], _ = strconv.Atoi(o.GetBackend().GetDescription()) // nothing is 0
		}
		if got["a"] != got["b"] {
			t.Errorf("writer %d: half an apply is there: %d and %d", w, got["a"], got["b"])
		}
		if got["a"] < l.acked[w] || got["a"] > l.tried[w] {
			t.Errorf("writer %d: %d is there, %d was acknowledged, %d was sent", w, got["a"], l.acked[w], l.tried[w])
		}
	}
	for tenant, head := range l.heads {
		log, err := client.Log(ctx, &adminv1.LogRequest{Tenant: tenant, Limit: 50})
		if err != nil {
			t.Fatalf("log: %v", err)
		}
		entries := log.GetEntries()
		if entries[0].GetRevision() < head {
			t.Errorf("tenant %s: the log ends at %d, %d was acknowledged", tenant, entries[0].GetRevision(), head)
		}
		for i := 1; i < len(entries); i++ {
			if entries[i].GetRevision() != entries[i-1].GetRevision()-1 {
				t.Errorf("tenant %s: the log has a gap below %d", tenant, entries[i-1].GetRevision())
			}
		}
	}
}
