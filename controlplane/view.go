package controlplane

import (
	"context"

	"github.com/sluicegate/sluice/controlplane/api"
	"github.com/sluicegate/sluice/controlplane/merge"
	"github.com/sluicegate/sluice/controlplane/xds"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// View implements [api.Publisher].
func (p *publisher) View(name string) (*api.View, bool) { return p.world.Load().View(name) }

// Views implements [api.Publisher].
func (p *publisher) Views() []*api.View {
	world := p.world.Load()
	var all []*api.View
	for _, name := range world.names() {
		all = append(all, world.tenant(name).view)
	}
	return all
}

// Groups implements [api.Publisher].
func (p *publisher) Groups() map[string][]string {
	served, _ := p.world.Load().groups()
	return served
}

// Explain implements [api.Publisher].
func (p *publisher) Explain(_ context.Context, name, target string) (*adminv1.ExplainResponse, error) {
	s := p.world.Load().tenant(name)
	if s == nil {
		return nil, &api.Missing{Reason: "there is no such tenant"}
	}
	return merge.Explain(s.in, target)
}

// Origin implements [api.Publisher].
func (p *publisher) Origin(name string, r *xdsv1.Refusal) (object, field string) {
	s := p.world.Load().tenant(name)
	if s == nil || s.out == nil || r.GetName() == "" {
		return r.GetName(), r.GetField()
	}
	return s.out.Origin(r)
}

// proxies tells the API what the xDS server knows of connected proxies.
type proxies struct {
	server *xds.Server
}

var _ api.Fleet = proxies{}

func (p proxies) Connected(name string) []string      { return p.server.Connected(name) }
func (p proxies) Changed(name string) <-chan struct{} { return p.server.Changed(name) }
func (p proxies) Disconnect(id string)                { p.server.Disconnect(id) }

func (p proxies) Progress(name string, revision int64) api.Progress {
	progress := p.server.Progress(name, revision)
	refused := make(map[string][]*xdsv1.Refusal, len(progress.Refused))
	for _, r := range progress.Refused {
		refused[r.Proxy] = r.Reasons
	}
	return api.Progress{Serving: progress.Serving, Refused: refused}
}

func (p proxies) Serving() map[string]map[string]int64 {
	all := map[string]map[string]int64{}
	for _, state := range p.server.Proxies() {
		all[state.ID] = state.Revisions
	}
	return all
}
