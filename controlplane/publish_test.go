package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/sluicegate/sluice/controlplane/api"
	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/controlplane/xds"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// slowStore is a real store whose commits tests delay or make fail, as a full disk does.
type slowStore struct {
	store.Store
	fail    atomic.Bool
	late    atomic.Bool // fails once all is written, as an fsync does
	commits atomic.Int64
	gate    func()
}

var errDisk = errors.New("no space left on device")

func (s *slowStore) Commit(ctx context.Context, txn store.Txn) error {
	s.commits.Add(1)
	if s.gate != nil {
		s.gate()
	}
	if s.fail.Load() {
		return errDisk
	}
	err := s.Store.Commit(ctx, txn)
	if err == nil && s.late.Load() {
		err = errDisk
	}
	return err
}

// newLoop runs a publisher over a store of its own, with the tenant acme.
func newLoop(t *testing.T) (*publisher, *slowStore) {
	t.Helper()
	dir := t.TempDir()
	bolt, err := store.OpenBolt(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	s := &slowStore{Store: bolt}
	vault, err := tenant.OpenVault(t.Context(), s, filepath.Join(dir, "k"), true)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	p := &publisher{store: s, vault: vault, server: xds.New(xds.Config{}), keys: newKeyFetcher(log, time.Now), log: log, now: time.Now,
		meter: newMeter(nil), requests: make(chan *request), done: make(chan struct{})}
	if err := p.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go p.run(ctx)
	t.Cleanup(func() { cancel(); <-p.done; bolt.Close() })
	create := api.Edit{Tenant: "acme", Plan: func(context.Context, api.World) ([]api.Change, error) {
		return []api.Change{{Tenant: "acme", Create: true}}, nil
	}}
	if _, err := p.Submit(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	return p, s
}

func put(objects ...*adminv1.Object) api.Edit {
	return api.Edit{Tenant: "acme", Actor: "tester", Plan: func(context.Context, api.World) ([]api.Change, error) {
		return []api.Change{{Tenant: "acme", Put: objects}}, nil
	}}
}

func listener(name string, port uint32) *adminv1.Object {
	return &adminv1.Object{Name: name, Spec: &adminv1.Object_Listener{Listener: &adminv1.Listener{Port: port}}}
}

// What could not be stored is neither published nor seen, and the loop goes on.
func TestNothingIsPublishedThatIsNotStored(t *testing.T) {
	p, s := newLoop(t)
	s.fail.Store(true)
	if _, err := p.Submit(t.Context(), put(listener("a", 1))); !errors.Is(err, errDisk) {
		t.Fatalf("Submit: %v", err)
	}
	view, _ := p.View("acme")
	if head := p.server.Progress("acme", 1).Head; head != 1 || view.Revision != 1 || view.Objects.Len() != 0 {
		t.Errorf("after a failed commit: head %d, view %d with %d objects", head, view.Revision, view.Objects.Len())
	}
	s.fail.Store(false)
	out, err := p.Submit(t.Context(), put(listener("b", 2)))
	if err != nil || out.Revision != 2 {
		t.Fatalf("Submit: %v, %v", out, err)
	}
	view, _ = p.View("acme")
	if head := p.server.Progress("acme", 1).Head; head != 2 || view.Objects.Get("listener/a") != nil || view.Objects.Get("listener/b") == nil {
		t.Errorf("after a good commit: head %d, objects %v", head, view.Objects)
	}
}

// A commit that failed and is there nevertheless leaves the loop with another idea of the tenant than the store: it ends, so that
// a restart finds out, and does not refuse the tenant's edits for ever.
func TestCommitThatFailedAndIsThere(t *testing.T) {
	p, s := newLoop(t)
	s.late.Store(true)
	if _, err := p.Submit(t.Context(), put(listener("a", 1))); !errors.Is(err, errDisk) {
		t.Fatalf("Submit: %v", err)
	}
	<-p.done
	if !errors.Is(p.broken, errDisk) {
		t.Errorf("the loop ended with %v", p.broken)
	}
	if _, err := p.Submit(t.Context(), put(listener("b", 2))); !errors.Is(err, errStopping) {
		t.Errorf("Submit: %v", err)
	}
	s.late.Store(false)
	again := &publisher{store: s, vault: p.vault, server: xds.New(xds.Config{}), keys: p.keys, log: p.log, now: time.Now}
	if err := again.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if view, _ := again.View("acme"); view.Revision != 2 || view.Objects.Get("listener/a") == nil {
		t.Errorf("after a restart: revision %d", view.Revision)
	}
}

// At the moment of the commit nobody has been given anything; edits that came meanwhile share the next commit.
func TestPublishFollowsCommitAndBatches(t *testing.T) {
	p, s := newLoop(t)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.gate = func() {
		once.Do(func() {
			if head := p.server.Progress("acme", 1).Head; head != 1 {
				t.Errorf("published before it was stored: head %d", head)
			}
			close(entered)
			<-release
		})
	}
	before := s.commits.Load()
	var wg sync.WaitGroup
	submit := func(i int) {
		wg.Go(func() {
			if _, err := p.Submit(context.Background(), put(listener(fmt.Sprint("l", i), uint32(i+1)))); err != nil {
				t.Errorf("edit %d: %v", i, err)
			}
		})
	}
	submit(0)
	<-entered
	for i := 1; i <= 40; i++ {
		submit(i)
	}
	time.Sleep(50 * time.Millisecond) // until they queue; with fewer in the queue the test is only weaker
	close(release)
	wg.Wait()
	if commits := s.commits.Load() - before; commits > 20 {
		t.Errorf("41 edits took %d commits: they shared none", commits)
	}
	if view, _ := p.View("acme"); view.Revision != 42 || view.Objects.Len() != 41 {
		t.Errorf("revision %d with %d objects", view.Revision, view.Objects.Len())
	}
	if head := p.server.Progress("acme", 1).Head; head != 42 {
		t.Errorf("published up to %d", head)
	}
}

// An edit that changes nothing on top of one that is not stored yet is not told that all is well before that is.
func TestNoChangeWaitsForWhatItStandsOn(t *testing.T) {
	p, s := newLoop(t)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.gate = func() { once.Do(func() { close(entered); <-release }) }
	errs := make(chan error, 3)
	submit := func(e api.Edit) {
		_, err := p.Submit(context.Background(), e)
		errs <- err
	}
	go submit(put(listener("first", 1)))
	<-entered // the loop is busy: the next two become one batch
	go submit(put(listener("a", 1)))
	time.Sleep(20 * time.Millisecond)
	go submit(put(listener("a", 1)))
	time.Sleep(20 * time.Millisecond)
	s.gate = func() { s.fail.Store(true) } // from the second commit on
	close(release)
	failed := 0
	for range 3 {
		if err := <-errs; errors.Is(err, errDisk) {
			failed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if failed != 2 {
		t.Errorf("%d edits were told that the disk is full, want 2: both stood on it", failed)
	}
}

// A plan that panics costs its own caller an answer and nobody else anything.
func TestPanicIsOneEditsOwn(t *testing.T) {
	p, _ := newLoop(t)
	bad := api.Edit{Tenant: "acme", Plan: func(context.Context, api.World) ([]api.Change, error) { panic("bug") }}
	if _, err := p.Submit(t.Context(), bad); err == nil || strings.Contains(err.Error(), "bug") {
		t.Errorf("Submit: %v", err)
	}
	if _, err := p.Submit(t.Context(), put(listener("a", 1))); err != nil {
		t.Errorf("the next edit: %v", err)
	}
}

func TestStoppedLoopAnswers(t *testing.T) {
	p := &publisher{requests: make(chan *request), done: make(chan struct{})}
	close(p.done)
	if _, err := p.Submit(t.Context(), put()); !errors.Is(err, errStopping) {
		t.Errorf("Submit: %v", err)
	}
}

const keySetText = `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"%s","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

const guarded = `
binds:
- port: 3000
  listeners:
  - routes:
    - policies:
        jwtAuth: {mode: strict, issuer: https://issuer.example, audiences: [mcp], jwks: {url: "%s/keys"}}
      backends:
      - mcp: {targets: [{name: one, mcp: {host: https://one.example.com}}]}
`

func TestKeySets(t *testing.T) {
	var kid atomic.Value
	kid.Store("first")
	var down atomic.Bool
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, keySetText, kid.Load())
	}))
	defer issuer.Close()
	config := fmt.Sprintf(guarded, issuer.URL)
	dir := t.TempDir()

	r := start(t, dir)
	_, err := r.Apply(t.Context(), applyRequest(t, config))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(diagnosticsOf(err), "private-network") {
		t.Fatalf("a private URL without a grant: %v%s", err, diagnosticsOf(err))
	}
	// The literal check is not all: a name that resolves to a private address is refused when it is dialled.
	named := strings.ReplaceAll(config, "127.0.0.1", "localhost.")
	if _, err = r.Apply(t.Context(), applyRequest(t, named)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a name of a private address without a grant: %v%s", err, diagnosticsOf(err))
	}
	r.stop()

	r = start(t, dir, "private-network")
	down.Store(true)
	_, err = r.Apply(t.Context(), applyRequest(t, config))
	if told := diagnosticsOf(err); status.Code(err) != codes.InvalidArgument || !strings.Contains(told, issuer.URL+"/keys: the answer is 502") || !strings.Contains(told, "test.yaml:7:") {
		t.Fatalf("keys that cannot be fetched: %v%s", err, told)
	}
	down.Store(false)
	applied := r.apply(config)
	e := r.join("", "e").connect(r.at.XDS)
	e.serving("default", applied.GetRevision())
	name := ""
	for _, n := range e.holds("default") {
		if strings.HasPrefix(n, "default/jwks/") {
			name = n
		}
	}
	if name == "" {
		t.Fatalf("the proxy holds no keys: %v", e.holds("default"))
	}

	// A restart needs no issuer.
	r.stop()
	down.Store(true)
	r = start(t, dir)
	e.connect(r.at.XDS)
	e.serving("default", applied.GetRevision())
	version := e.version(name)
	if version == "" {
		t.Fatal("after a restart the keys are gone")
	}
	if same := r.apply(config); len(same.GetChanges()) != 0 || same.GetRevision() != applied.GetRevision() {
		t.Errorf("the same file after a restart: %v", same)
	}
}

// Keys are refreshed; those that cannot be had stay, and status says so until they can.
func TestKeySetsAreRefreshed(t *testing.T) {
	var kid atomic.Value
	kid.Store("first")
	var down atomic.Bool
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if down.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, keySetText, kid.Load())
	}))
	defer issuer.Close()
	p, _ := newLoop(t)
	grants := []string{"private-network"}
	objects := load(t, fmt.Sprintf(guarded, issuer.URL)).Objects
	edit := put(objects...)
	edit.Plan = func(context.Context, api.World) ([]api.Change, error) {
		return []api.Change{{Tenant: "acme", Put: objects, Grants: &grants}}, nil
	}
	// The grants are those that the edit gives.
	out, err := p.Submit(t.Context(), edit)
	if err != nil {
		t.Fatalf("Submit: %v", err)
	}
	source := keySource{"acme", issuer.URL + "/keys"}
	held := func() keySet { return p.world.Load().tenant("acme").keys[source.url] }
	if !strings.Contains(string(held().Keys), "first") {
		t.Fatalf("held: %s", held().Keys)
	}
	named := map[keySource]keySet{source: held()}
	if due := p.keys.due(named); len(due) != 0 {
		t.Errorf("fresh keys are due: %v", due)
	}

	refresh := func() {
		t.Helper()
		p.keys.mu.Lock()
		p.keys.schedule[source].next = time.Time{}
		p.keys.mu.Unlock()
		due := p.keys.due(named)
		if len(due) != 1 || len(p.keys.due(named)) != 0 { // and not twice at a time
			t.Fatalf("due: %v", due)
		}
		p.refresh(t.Context(), source, held())
	}
	refresh()
	if view, _ := p.View("acme"); view.Revision != out.Revision {
		t.Errorf("unchanged keys made revision %d", view.Revision)
	}
	kid.Store("second")
	refresh()
	view, _ := p.View("acme")
	if !strings.Contains(string(held().Keys), "second") || view.Revision != out.Revision+1 {
		t.Errorf("changed keys: revision %d, %s", view.Revision, held().Keys)
	}
	down.Store(true)
	refresh()
	warnings := p.Warnings("acme")
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0].GetObject(), "route/") || !strings.Contains(warnings[0].GetReason(), "502") || !strings.Contains(string(held().Keys), "second") {
		t.Errorf("keys that cannot be had: %v, %s", warnings, held().Keys)
	}
	if due := p.keys.due(named); len(due) != 0 {
		t.Errorf("a failed source is tried again at once: %v", due)
	}
	down.Store(false)
	refresh()
	if warnings := p.Warnings("acme"); len(warnings) != 0 {
		t.Errorf("warnings after it went well: %v", warnings)
	}
	if due := p.keys.due(map[keySource]keySet{}); len(due) != 0 || len(p.keys.schedule) != 0 {
		t.Error("a URL that nobody names any more is kept")
	}
}

func TestKeySetsAreChecked(t *testing.T) {
	for body, want := range map[string]string{
		"nonsense": "no JSON Web Key Set", `{"keys":[]}`: "no key", `{}`: "no key", strings.Repeat(" ", maxKeySet+1): "larger",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }))
		if _, err := fetchKeys(t.Context(), "acme", []string{"private-network"}, server.URL); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, want %q", body, err, want)
		}
		server.Close()
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
	}))
	defer server.Close()
	if _, err := fetchKeys(t.Context(), "acme", []string{"private-network"}, server.URL); err == nil || !strings.Contains(err.Error(), "metadata") {
		t.Errorf("a redirect to a metadata service: %v", err)
	}
}

func TestClaims(t *testing.T) {
	set, wrong := loadTry(`
binds:
- port: 3000
  listeners:
  - hostname: a.example.com
    routes:
    - matches: [{path: {pathPrefix: /x}}, {path: {exact: /y}}]
      backends: [{mcp: {targets: [{name: one, mcp: {host: https://one.example.com}}]}}]
    - hostnames: [b.example.com]
      backends: [{mcp: {targets: [{name: one, mcp: {host: https://one.example.com}}]}}]
`)
	if wrong != "" {
		t.Fatal(wrong)
	}
	var objects []*store.Object
	for _, o := range set {
		objects = append(objects, &store.Object{Kind: resource.Kind(o), Name: o.GetName(), Object: o})
	}
	got := claimsOf(store.ObjectsOf(objects))
	for _, want := range []string{"3000/a.example.com/x", "3000/a.example.com/y (exact)", "3000/b.example.com/"} {
		if got.routes[want] == nil {
			t.Errorf("no claim of %q in %v", want, got.routes)
		}
	}
	if len(got.routes) != 3 || got.ports[3000] {
		t.Errorf("claims %v, TLS %v", got.routes, got.ports)
	}
}

// What edits keep up to date one by one is what a restart makes from scratch, after any edits.
func TestEditsEqualARestart(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	p, s := newLoop(t)
	secret := func(name string, n int) *adminv1.Object {
		return &adminv1.Object{Name: name, Spec: &adminv1.Object_Secret{Secret: &adminv1.Secret{Value: sealedAs(p, n)}}}
	}
	backend := &adminv1.Object{Name: "b", Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{}}}
	if _, err := p.Submit(t.Context(), put(backend)); err != nil {
		t.Fatal(err)
	}
	for i := range 120 {
		change := api.Change{Tenant: "acme", Sealed: map[string][]byte{}}
		for n := range 4 {
			change.Sealed[sealedAs(p, n).GetSealed()] = []byte(fmt.Sprint("value", n))
		}
		view, _ := p.View("acme")
		for range 1 + r.IntN(3) {
			name := fmt.Sprint("o", r.IntN(5))
			target := &adminv1.Object{Name: "b/" + name, Source: &adminv1.Source{File: fmt.Sprint("f", r.IntN(2))}, Spec: &adminv1.Object_Target{Target: &adminv1.Target{
				Backend: "b", Transport: &adminv1.Target_Mcp{Mcp: &adminv1.HttpTransport{Host: "h.example.com", Port: uint32(1 + r.IntN(2)), Path: "/"}},
				Policies: &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{
					Credentials: []*policyv1.LocatedCredential{{Credential: sealedAs(p, r.IntN(4))}}}}}}}}}
			choices := []*adminv1.Object{secret(name, r.IntN(4)), listener(name, uint32(1+r.IntN(50))), target}
			o := choices[r.IntN(len(choices))]
			key := resource.Key(o)
			if slices.ContainsFunc(change.Put, func(o *adminv1.Object) bool { return resource.Key(o) == key }) || slices.Contains(change.Remove, key) {
				continue
			}
			if view.Objects.Get(key) != nil && r.IntN(3) == 0 {
				change.Remove = append(change.Remove, key)
			} else {
				change.Put = append(change.Put, o)
			}
		}
		e := api.Edit{Tenant: "acme", Plan: func(context.Context, api.World) ([]api.Change, error) { return []api.Change{change}, nil }}
		if _, err := p.Submit(t.Context(), e); err != nil {
			t.Fatalf("edit %d: %v", i, err)
		}
		if i%10 != 0 {
			continue
		}
		again := &publisher{store: s, vault: p.vault, server: xds.New(xds.Config{}), log: p.log, now: p.now}
		if err := again.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, want := p.world.Load().tenant("acme"), again.world.Load().tenant("acme")
		listed := func(o store.Objects) []*store.Object { return slices.Collect(o.All()) }
		opt := []cmp.Option{protocmp.Transform(), cmp.Transformer("listed", listed), cmpopts.IgnoreUnexported(store.Object{}), cmpopts.EquateEmpty()}
		for what, pair := range map[string][2]any{
			"view": {want.view, got.view}, "sealed": {want.sealed, got.sealed}, "urls": {want.urls, got.urls},
			"routes": {want.claims.routes, got.claims.routes}, "ports": {want.claims.ports, got.claims.ports},
			"objects": {want.in.Objects, got.in.Objects}, "secrets": {want.in.Secrets, got.in.Secrets}, "digest": {want.out.Digest(), got.out.Digest()},
		} {
			if diff := cmp.Diff(pair[0], pair[1], opt...); diff != "" {
				t.Fatalf("after edit %d %s (-restart +edits):\n%s", i, what, diff)
			}
		}
	}
}

func sealedAs(p *publisher, n int) *policyv1.Credential {
	return &policyv1.Credential{Source: &policyv1.Credential_Sealed{Sealed: p.vault.Of("acme").Fingerprint([]byte(fmt.Sprint("value", n)))}}
}

// What changes above a tenant, and nothing of what it serves, makes no revision of it: the next edit stands on the last one.
func TestAboveATenantThatServesNothing(t *testing.T) {
	p, _ := newLoop(t)
	platform := api.Edit{Tenant: tenant.Platform, Actor: "tester", Plan: func(context.Context, api.World) ([]api.Change, error) {
		return []api.Change{{Tenant: tenant.Platform, Create: true, Put: []*adminv1.Object{{Name: resource.PlatformName, Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{}}}}}}, nil
	}}
	if _, err := p.Submit(t.Context(), platform); err != nil {
		t.Fatal(err)
	}
	if view, _ := p.View("acme"); view.Revision != 1 || view.Platform == nil {
		t.Errorf("the tenant is at revision %d below %v", view.Revision, view.Platform)
	}
	if out, err := p.Submit(t.Context(), put(listener("a", 1))); err != nil || out.Revision != 2 {
		t.Errorf("the next edit: %v, %v", out, err)
	}
}

// A tenant that a newer program does not understand waits for its own admin, and nobody waits for it.
func TestTenantThatDerivesNoMore(t *testing.T) {
	old, s := newLoop(t)
	stored := func(o *adminv1.Object) *store.Object {
		made, err := store.NewObject(resource.Kind(o), o, 2, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	rev := store.Revision{Tenant: "acme", If: 1, Entry: store.Entry{Revision: 2}, Put: []*store.Object{
		stored(&adminv1.Object{Name: "b", Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{}}}),
		stored(&adminv1.Object{Name: "b/t", Spec: &adminv1.Object_Target{Target: &adminv1.Target{Backend: "b"}}}), // no transport
	}}
	edit, err := rev.Edit()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), store.Txn{edit}); err != nil {
		t.Fatal(err)
	}
	p := &publisher{store: s, vault: old.vault, server: xds.New(xds.Config{}), log: old.log, now: time.Now, meter: newMeter(nil),
		requests: make(chan *request), done: make(chan struct{})}
	if err := p.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go p.run(ctx)
	defer func() { cancel(); <-p.done }()

	submit := func(change api.Change) (*api.Outcome, error) {
		return p.Submit(t.Context(), api.Edit{Tenant: change.Tenant, Actor: "tester", Plan: func(context.Context, api.World) ([]api.Change, error) {
			return []api.Change{change}, nil
		}})
	}
	if _, err := submit(api.Change{Tenant: "other", Create: true}); err != nil {
		t.Fatal(err)
	}
	enforced := &policyv1.Policies{Cors: &policyv1.Cors{AllowOrigins: []string{"https://a.example.com"}}}
	for _, o := range []*adminv1.Object{
		{Name: "edge", Spec: &adminv1.Object_Group{Group: &adminv1.Group{Tenants: []string{"acme", "other"}}}},
		{Name: resource.PlatformName, Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{Enforced: enforced}}},
	} {
		if _, err := submit(api.Change{Tenant: tenant.Platform, Put: []*adminv1.Object{o}}); err != nil {
			t.Fatalf("%s: %v", resource.Key(o), err)
		}
	}
	for _, name := range []string{"acme", "other"} {
		if view, _ := p.View(name); view.Platform == nil {
			t.Errorf("the operator's level does not stand above %s", name)
		}
	}
	_, err = submit(api.Change{Tenant: "acme", Put: []*adminv1.Object{listener("a", 1)}})
	if invalid, ok := errors.AsType[*api.Invalid](err); !ok || !strings.HasPrefix(resource.Format(invalid.Diagnostics[0]), "target/b/t: ") {
		t.Errorf("an edit beside what is wrong: %v, want one that names it", err)
	}
	out, err := submit(api.Change{Tenant: "acme", Remove: []string{"target/b/t"}, Put: []*adminv1.Object{listener("a", 1),
		{Name: "r", Spec: &adminv1.Object_Route{Route: &adminv1.Route{Listener: "a", Backends: []*adminv1.RouteBackend{{Backend: "b", Weight: 1}}}}}}})
	if err != nil || out.Revision != 3 {
		t.Fatalf("the edit that mends it: %v, %v", out, err)
	}
	if head := p.server.Progress("acme", 3).Head; head != 3 {
		t.Errorf("published up to %d, want 3", head)
	}
	policies := 0
	for r := range p.world.Load().tenant("acme").out.Config() {
		if strings.HasPrefix(r.Name, "acme/policy/") {
			policies++
		}
	}
	if policies != 1 {
		t.Errorf("%d policies are served, want the one that the operator enforces", policies)
	}
}

// What nobody names any more may fail: it was on its way when its object went.
func TestFailureOfASourceThatIsGone(t *testing.T) {
	keys := newKeyFetcher(slog.New(slog.DiscardHandler), time.Now)
	source := keySource{"acme", "https://issuer.example.com/keys"}
	if due := keys.due(map[keySource]keySet{source: {}}); len(due) != 0 {
		t.Fatalf("due: %v", due)
	}
	keys.schedule[source].next = time.Time{}
	if due := keys.due(map[keySource]keySet{source: {}}); len(due) != 1 {
		t.Fatalf("due: %v", due)
	}
	keys.due(nil)
	keys.failed(source, errDisk)
	if len(keys.schedule) != 0 {
		t.Errorf("scheduled: %v", keys.schedule)
	}
}

// Keys that the operator's level names are refreshed for all tenants below it.
func TestKeySetsOfThePlatformAreRefreshed(t *testing.T) {
	var kid atomic.Value
	kid.Store("first")
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, keySetText, kid.Load()) }))
	defer issuer.Close()
	p, _ := newLoop(t)
	targets := load(t, "mcp: {port: 3000, targets: [{name: one, mcp: {host: https://one.example.com}}]}").Objects
	if _, err := p.Submit(t.Context(), put(targets...)); err != nil {
		t.Fatal(err)
	}
	above := load(t, fmt.Sprintf("kind: Platform\nspec:\n  policies:\n    jwtAuth:\n      mode: strict\n      providers: [{issuer: https://issuer.example.com, audiences: [x], jwks: {url: %q}}]\n", issuer.URL)).Objects
	if _, err := p.Submit(t.Context(), api.Edit{Tenant: tenant.Platform, Plan: func(context.Context, api.World) ([]api.Change, error) {
		return []api.Change{{Tenant: tenant.Platform, Put: above}}, nil
	}}); err != nil {
		t.Fatalf("Submit: %v", err)
	}
	before, _ := p.View("acme")
	source := keySource{tenant.Platform, issuer.URL}
	kid.Store("second")
	p.refresh(t.Context(), source, p.world.Load().tenant(tenant.Platform).keys[source.url])
	world := p.world.Load()
	if held := world.tenant(tenant.Platform).keys[source.url].Keys; !strings.Contains(string(held), "second") {
		t.Errorf("the platform holds %s", held)
	}
	if given := world.tenant("acme").in.Jwks[source.url]; !strings.Contains(string(given), "second") {
		t.Errorf("tenant acme is given %s", given)
	}
	if after, _ := p.View("acme"); after.Revision != before.Revision+1 {
		t.Errorf("revision %d after %d", after.Revision, before.Revision)
	}
}

// Requests that change nothing are remembered no longer than others.
func TestOutcomesOfNoChangeAreForgotten(t *testing.T) {
	p, s := newLoop(t)
	start, hours := time.Now(), atomic.Int64{}
	p.now = func() time.Time { return start.Add(time.Duration(hours.Load()) * time.Hour) }
	for i := range 3 * trimEvery {
		hours.Add(1)
		edit := put(listener("a", 1))
		edit.RequestID, edit.Request = fmt.Sprint(i), "r"
		if _, err := p.Submit(t.Context(), edit); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := s.Range(t.Context(), "acme", store.Query{Prefix: "request/"})
	if err != nil || len(kept) > trimEvery+25 {
		t.Errorf("%d outcomes are kept of %d, a day's being 24: %v", len(kept), 3*trimEvery, err)
	}
}
