package agent

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane/snapshot"
)

type target = *snapshot.Target

// wellKnown are the paths of a card below its agent: of 0.3 and 1.0, and of 0.2.
var wellKnown = []string{"/.well-known/agent-card.json", "/.well-known/agent.json"}

// Place is what a path of a route leads to.
type Place struct {
	Backend *snapshot.Backend
	Agent   *snapshot.Target
	// Card tells that the path is that of the agent's card, and Name which of wellKnown it ends in.
	Card bool
	Name string

	base string // the agent's own path as the client writes it, without a final slash
}

// URL is the agent's endpoint, as the sender of r reaches it. What other headers say of host and scheme is not believed.
func (p *Place) URL(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if p.base == "" {
		return scheme + "://" + r.Host + "/"
	}
	return scheme + "://" + r.Host + p.base
}

var (
	// ErrNoAgent says that the path is one of agents, and names none.
	ErrNoAgent = errors.New("no A2A agent is here: with several targets behind a route, each agent is at the route's path followed by /NAME, the name of its target")
	// ErrNoServer says that a route leads to agents alone, and the path names none.
	ErrNoServer = errors.New("the route leads to A2A agents and no MCP server: each agent is at the route's path followed by /NAME, the name of its target")
)

// Find returns the agent or card that a path of a route leads to; nil, and no error, if the path is for MCP.
//
// An agent that has the route to itself (in each backend there is one target, an agent) is at every path of the route, as
// an MCP endpoint would be. Else the path's last segment names it, before which there may be any path of the route. choose
// picks one of several backends.
func Find(route *snapshot.Route, u *url.URL, choose func([]*snapshot.Backend) *snapshot.Backend) (*Place, error) {
	agents, servers, alone := false, false, true
	for _, b := range route.Backends {
		agents, servers = agents || len(b.Agents) > 0, servers || len(b.Targets) > 0
		alone = alone && len(b.Agents) == 1 && len(b.Targets) == 0
	}
	if !agents {
		return nil, nil
	}
	p := &Place{base: u.EscapedPath()}
	for _, name := range wellKnown {
		if base, ok := strings.CutSuffix(p.base, name); ok {
			p.Card, p.Name, p.base = true, name, base
			break
		}
	}
	p.base = strings.TrimSuffix(p.base, "/")
	if alone {
		p.Backend = choose(route.Backends)
		p.Agent = p.Backend.Agents[0]
		return p, nil
	}
	segment := p.base[strings.LastIndexByte(p.base, '/')+1:]
	var among []*snapshot.Backend
	for _, b := range route.Backends {
		if slices.ContainsFunc(b.Agents, func(t target) bool { return t.Name == segment }) {
			among = append(among, b)
		}
	}
	switch {
	case len(among) > 0:
		p.Backend = choose(among)
		p.Agent = p.Backend.Agents[slices.IndexFunc(p.Backend.Agents, func(t target) bool { return t.Name == segment })]
		return p, nil
	case !servers:
		return nil, ErrNoServer
	case p.Card:
		return nil, ErrNoAgent
	}
	return nil, nil
}
