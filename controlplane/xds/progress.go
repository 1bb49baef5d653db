package xds

import (
	"maps"
	"slices"
	"strings"
	"time"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Progress holds each connected proxy of a tenant in exactly one of its lists, sorted.
type Progress struct {
	// The last revision published. If 0: none.
	Head int64
	// Proxies that serve the revision or a later one as it was written.
	Serving []string
	// Proxies that have it, or a later one, and could not build all of it.
	Refused []Refusal
	// Proxies that have not answered yet.
	Lagging []string
}

// A Refusal is one proxy's and its reasons, at least one.
type Refusal struct {
	Proxy string
	// Those without a Name are about the revision as a whole, from clients that give no details.
	Reasons []*xdsv1.Refusal
}

// ProxyState is one connected proxy.
type ProxyState struct {
	Peer
	Since time.Time
	// Revision that it has answered for, whole or with refusals, by tenant.
	Revisions map[string]int64
	// By tenant, where there are any.
	Refusals map[string][]*xdsv1.Refusal
}

// Connected lists the proxies with a stream that serve the tenant, sorted.
func (s *Server) Connected(name string) []string {
	p := s.Progress(name, 0)
	for _, r := range p.Refused {
		p.Serving = append(p.Serving, r.Proxy)
	}
	all := append(p.Serving, p.Lagging...)
	slices.Sort(all)
	return all
}

// Progress tells how far the connected proxies of a tenant are with a revision.
func (s *Server) Progress(name string, revision int64) Progress {
	t := s.tenant(name)
	if t == nil {
		return Progress{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := Progress{Head: t.head}
	for c := range t.cursors {
		id := c.stream.peer.ID
		switch {
		case !c.countsLocked():
		case !c.reachedLocked(revision):
			p.Lagging = append(p.Lagging, id)
		case len(c.refused) > 0:
			p.Refused = append(p.Refused, Refusal{id, slices.Clone(c.refused)})
		default:
			p.Serving = append(p.Serving, id)
		}
	}
	slices.Sort(p.Serving)
	slices.Sort(p.Lagging)
	slices.SortFunc(p.Refused, func(a, b Refusal) int { return strings.Compare(a.Proxy, b.Proxy) })
	return p
}

// Changed returns a channel that is closed when Progress of the tenant may have changed. A revision to a thousand
// proxies changes it thousands of times: wait a few milliseconds before looking again. Of a tenant that is not
// published the channel is closed at once.
func (s *Server) Changed(name string) <-chan struct{} {
	t := s.tenant(name)
	if t == nil {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.changed
}

// Proxies lists the proxies with a stream, sorted by id.
func (s *Server) Proxies() []ProxyState {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make(map[string]*ProxyState, len(s.streams))
	for id, st := range s.streams {
		if st.ended.Load() {
			continue
		}
		states[id] = &ProxyState{Peer: st.peer, Since: st.since, Revisions: map[string]int64{}, Refusals: map[string][]*xdsv1.Refusal{}}
	}
	for name, t := range s.tenants {
		t.mu.Lock()
		for c := range t.cursors {
			state := states[c.stream.peer.ID]
			if state == nil || !c.countsLocked() {
				continue
			}
			if c.acked > 0 {
				state.Revisions[name] = c.acked
			}
			if len(c.refused) > 0 {
				state.Refusals[name] = slices.Clone(c.refused)
			}
		}
		t.mu.Unlock()
	}
	out := make([]ProxyState, 0, len(states))
	for _, id := range slices.Sorted(maps.Keys(states)) {
		out = append(out, *states[id])
	}
	return out
}

func (s *Server) tenant(name string) *tenant {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tenants[name]
}
