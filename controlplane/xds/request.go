package xds

import (
	"bytes"
	"log/slog"
	"maps"
	"slices"
	"strings"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Bounds on what a proxy can make the server keep and show.
const (
	maxRefusals = 1000
	maxReason   = 1 << 10
)

// receive takes in one request: the answer to a frame, a change of what is subscribed, or both. Types that are not
// served here are ignored, as ADS clients may ask for any.
func (s *stream) receive(r *request, log *slog.Logger) error {
	set := slices.Index(typeURLs[:], r.typeURL)
	if set < 0 {
		return nil
	}
	if r.nonce != "" { // else no answer, whatever else it holds
		s.answered(r, log)
	}
	sub := &s.subscribed[set]
	first := !sub.asked
	sub.asked = true
	was := sub.wildcard
	if first && len(r.subscribe) == 0 {
		sub.wildcard = true
	}
	var names []string
	for _, name := range r.subscribe {
		if name == "*" {
			sub.wildcard = true
			continue
		}
		if sub.names == nil {
			sub.names = map[string]bool{}
		}
		if names = append(names, name); !sub.names[name] && len(sub.names) == maxNames {
			return errNames
		}
		sub.names[name] = true
	}
	for _, name := range r.unsubscribe {
		if delete(sub.names, name); name == "*" {
			sub.wildcard = false
		}
	}
	if sub.wildcard && !was {
		s.open(set, r.versions)
	}
	if first {
		s.firstAsked(set) // once it is known what is to be sent: until then all seems to have been
	}
	if len(names) > 0 {
		s.reply(set, names, r.versions)
	}
	return nil
}

// firstAsked: the client is there for a type, and with Config counts as a proxy.
func (s *stream) firstAsked(set int) {
	if set != configs {
		return
	}
	for _, c := range s.cursors {
		c.tenant.mu.Lock()
		c.counts = true
		c.tenant.progressLocked()
		c.tenant.mu.Unlock()
	}
}

// open begins a wildcard subscription. Claims tell what the client has from earlier; of tenants that it does not serve
// (any more) it is told to remove them, in terms of its own claims alone.
func (s *stream) open(set int, claims []claim) {
	byTenant := map[string][]claim{}
	for start := 0; start < len(claims); { // claims of one tenant tend to lie together
		tenant := tenantOf(claims[start].name)
		end := start + 1
		for end < len(claims) && bytes.Equal(tenantOf(claims[end].name), tenant) {
			end++
		}
		byTenant[string(tenant)] = append(byTenant[string(tenant)], claims[start:end]...)
		start = end
	}
	s.claims[set] = byTenant
	for name, c := range s.cursors {
		c.tenant.mu.Lock()
		c.beginLocked(set, byTenant[name])
		c.tenant.mu.Unlock()
		delete(byTenant, name)
		s.turn(c)
	}
	s.reconcile()
}

// disown tells the client to remove what it claims of tenants that it is not to serve. Those that are assigned and
// not published (yet) stay as they are.
func (s *stream) disown(assigned []string) {
	for set := range s.claims {
		strangers := chunker{set: set}
		for _, tenant := range slices.Sorted(maps.Keys(s.claims[set])) {
			if _, serves := slices.BinarySearch(assigned, tenant); serves {
				continue
			}
			commit := false
			for _, cl := range s.claims[set][tenant] {
				if string(cl.name) == commitName(tenant) {
					commit = true
				} else {
					strangers.removed(string(cl.name))
				}
			}
			if commit { // last, as it ends the tenant
				strangers.removed(commitName(tenant))
			}
			delete(s.claims[set], tenant)
		}
		s.replyWith(&strangers)
	}
}

// tenantOf is the part of a resource's name before the first slash, or the name.
func tenantOf(name []byte) []byte {
	tenant, _, _ := bytes.Cut(name, []byte{'/'})
	return tenant
}

// reply answers a subscription by name: each is sent, unless the client has it, or said to be absent. A name of a tenant
// that the proxy does not serve is as absent as one that does not exist.
func (s *stream) reply(set int, names []string, claims []claim) {
	have := make(map[string]string, len(claims))
	for _, cl := range claims {
		have[string(cl.name)] = string(cl.version)
	}
	s.reconcile()
	out := chunker{set: set}
	for _, name := range names {
		tenant, _, _ := strings.Cut(name, "/")
		r, ok := s.current(set, tenant, name)
		switch version, claimed := have[name]; {
		case !ok:
			out.removed(name)
		case !claimed || version != r.Version:
			out.resource(&r)
		}
	}
	s.replyWith(&out)
}

func (s *stream) current(set int, tenant, name string) (Resource, bool) {
	c := s.cursors[tenant]
	if c == nil || c.leaving {
		return Resource{}, false
	}
	c.tenant.mu.Lock()
	defer c.tenant.mu.Unlock()
	if set == configs && name == c.tenant.commit.Name {
		return c.tenant.commit, true
	}
	if r := c.tenant.sets[set].get(name); r != nil {
		return r.Resource, true
	}
	return Resource{}, false
}

// replyWith sends bodies that belong to no revision: nothing waits for their answer.
func (s *stream) replyWith(c *chunker) {
	for _, body := range c.bodies {
		s.replies = append(s.replies, frame{body: body, set: c.set, nonce: s.nonce("", 0)})
	}
}

// answered takes in an ACK or NACK.
func (s *stream) answered(r *request, log *slog.Logger) {
	tenant, number, ok := parseNonce(r.nonce)
	s.answeredAll = s.answeredAll || ok && number == s.lastSent
	c := s.cursors[tenant]
	if !ok || c == nil {
		return
	}
	var refused []*xdsv1.Refusal
	if r.failure != nil {
		refused = refusals(tenant, r)
		log.Warn("proxy refused a revision", "tenant", tenant, "nonce", r.nonce, "name", refused[0].Name, "reason", refused[0].Reason, "refusals", len(refused))
	}
	c.answer(number, refused)
	s.turn(c)
}

// refusals reads the details of a NACK; at least one. They are shown to the tenant, so names of others' resources are
// not taken from a proxy's word.
func refusals(tenant string, r *request) []*xdsv1.Refusal {
	var st rpcstatus.Status
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r.failure, &st); err != nil {
		return []*xdsv1.Refusal{{Type: r.typeURL, Reason: "NACK with malformed error_detail"}}
	}
	var out []*xdsv1.Refusal
	for _, detail := range st.Details {
		refusal := &xdsv1.Refusal{}
		if len(out) == maxRefusals || detail.UnmarshalTo(refusal) != nil || !strings.HasPrefix(refusal.Name, tenant+"/") {
			continue
		}
		out = append(out, &xdsv1.Refusal{Type: clip(refusal.Type), Name: clip(refusal.Name), Version: clip(refusal.Version),
			Field: clip(refusal.Field), Reason: clip(refusal.Reason)}) // and no fields that are not known
	}
	if len(out) == 0 {
		out = append(out, &xdsv1.Refusal{Type: r.typeURL, Reason: clip(st.Message)})
	}
	return out
}

// clip shortens what a proxy said, at a character.
func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return strings.ToValidUTF8(s[:maxReason], "") + "…"
}
