package dataplane

import (
	"hash/fnv"
	"math/rand/v2"
	"net"
	"slices"

	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// choose picks the backend of a new session or of a request that stands alone. One of agents alone has nothing to say in MCP.
func (x *exchange) choose(steadily bool) *snapshot.Backend {
	backends := x.route.Backends
	if ofAgents := func(b *snapshot.Backend) bool { return len(b.Targets) == 0 && len(b.Agents) > 0 }; slices.ContainsFunc(backends, ofAgents) {
		backends = slices.DeleteFunc(slices.Clone(backends), ofAgents) // one is left, or Find had refused
	}
	return x.among(backends, steadily)
}

// steadily picks the backend of an agent: the same caller's tasks are where they began.
func (x *exchange) steadily(backends []*snapshot.Backend) *snapshot.Backend {
	return x.among(backends, true)
}

// among spreads new sessions by weight. Requests that stand alone must find the backend where the same caller's
// cursors and subscriptions are, so who calls decides.
func (x *exchange) among(backends []*snapshot.Backend, steadily bool) *snapshot.Backend {
	if len(backends) == 1 {
		return backends[0]
	}
	var total uint64
	for _, b := range backends {
		total += uint64(b.Weight)
	}
	weight := func(b *snapshot.Backend) uint64 { return uint64(b.Weight) }
	if total == 0 {
		total, weight = uint64(len(backends)), func(*snapshot.Backend) uint64 { return 1 }
	}
	at := rand.Uint64N(total)
	if steadily {
		who, _, _ := net.SplitHostPort(x.r.RemoteAddr)
		if x.principal != nil {
			who = x.principal.ID
		}
		at = steady(who) % total
	}
	for _, b := range backends {
		if w := weight(b); at < w {
			return b
		} else {
			at -= w
		}
	}
	return backends[0]
}

// steady is the same for the same caller on every proxy.
func steady(who string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(who))
	return h.Sum64()
}
