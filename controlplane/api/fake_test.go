package api

import (
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/mtls"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// published is a Publisher that keeps views in memory: enough for what this package decides by itself. The real loop is
// tested with the real API in the root package.
type published struct {
	views  map[string]*View
	groups map[string][]string
	before func() // if not nil: runs before an edit is done
}

func (p *published) View(name string) (*View, bool) { v, ok := p.views[name]; return v, ok }

func (p *published) Views() []*View {
	var all []*View
	for _, name := range slices.Sorted(maps.Keys(p.views)) {
		if name != tenant.Platform {
			all = append(all, p.views[name])
		}
	}
	return all
}

func (p *published) Submit(ctx context.Context, e Edit) (*Outcome, error) {
	changes, err := e.Plan(ctx, p)
	if p.before != nil {
		p.before()
	}
	for _, c := range changes {
		if c.Drop {
			delete(p.views, c.Tenant)
		}
	}
	return &Outcome{Revision: 1}, err
}

func (p *published) Explain(context.Context, string, string) (*adminv1.ExplainResponse, error) {
	return &adminv1.ExplainResponse{}, nil
}
func (p *published) Groups() map[string][]string             { return p.groups }
func (p *published) Warnings(string) []*adminv1.ObjectStatus { return nil }
func (p *published) Origin(_ string, r *xdsv1.Refusal) (_, _ string) {
	return r.GetName(), r.GetField()
}

// connections is a Fleet whose proxies tests move.
type connections struct {
	mu        sync.Mutex
	connected []string
	progress  Progress
	changed   chan struct{}
}

func newConnections(ids ...string) *connections {
	return &connections{connected: ids, changed: make(chan struct{})}
}

func (c *connections) set(change func(c *connections)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *connections) Connected(string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.connected)
}

func (c *connections) Progress(string, int64) Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Progress{Serving: slices.Clone(c.progress.Serving), Refused: maps.Clone(c.progress.Refused)}
}

func (c *connections) Changed(string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *connections) Serving() map[string]map[string]int64 { return nil }
func (c *connections) Disconnect(string)                    {}

func newServer(t *testing.T, fleet Fleet) (*Server, *published) {
	t.Helper()
	dir := t.TempDir()
	s, err := store.OpenBolt(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	vault, err := tenant.OpenVault(t.Context(), s, filepath.Join(dir, "cluster.key"), true)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := tenant.OpenRegistry(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := mtls.OpenCA(filepath.Join(dir, "ca"), "")
	if err != nil {
		t.Fatal(err)
	}
	p := &published{views: map[string]*View{}, groups: map[string][]string{tenant.Default: {"default", "acme"}}}
	for _, name := range []string{tenant.Platform, "default", "acme"} {
		p.views[name] = &View{Info: tenant.Info{Name: name}, Revision: 3, Sealed: map[string]int{}}
	}
	server, err := New(Config{Store: s, Registry: registry, Vault: vault, CA: ca, Publisher: p, Fleet: fleet, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return server, p
}

// hold puts an object into a view.
func hold(t *testing.T, v *View, o *adminv1.Object) {
	t.Helper()
	stored, err := store.NewObject(resource.Kind(o), o, 1, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	v.Objects = v.Objects.With([]*store.Object{stored}, nil)
	for _, c := range resource.Credentials(o) {
		if fp := c.GetSealed(); fp != "" {
			v.Sealed[fp]++
		}
	}
}
