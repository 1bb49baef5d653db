package api

import (
	"context"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const (
	// A proxy that lost its connection during a wait is waited for this long: it may be back with the revision in a
	// moment, and until then it serves the old one.
	reconnectGrace = 5 * time.Second
	// A thousand proxies answer within some 100 ms: looking at each answer would cost more than it tells.
	lookInterval = 10 * time.Millisecond
	sendInterval = 100 * time.Millisecond
	maxLagging   = 10
)

// Status tells what became of a revision.
func (a admin) Status(r *adminv1.StatusRequest, stream grpc.ServerStreamingServer[adminv1.StatusResponse]) error {
	ctx := stream.Context()
	name := callerOf(ctx).tenant
	view, ok := a.Publisher.View(name)
	if !ok {
		return noTenant(name)
	}
	revision := r.GetRevision()
	if revision == 0 {
		revision = view.Revision
	}
	if revision < 0 || revision > view.Revision {
		return status.Errorf(codes.NotFound, "tenant %q has no revision %d, its head is %d", name, revision, view.Revision)
	}
	percent := r.GetPercent()
	if percent == 0 || percent > 100 {
		percent = 100
	}
	expected := slices.Clone(r.GetExpected())
	if len(expected) == 0 {
		expected = a.Fleet.Connected(name)
	}
	w := &wait{Server: a.Server, tenant: name, revision: revision, percent: int(percent), expected: expected, gone: map[string]time.Time{}}
	var sent time.Time
	for {
		changed := a.Fleet.Changed(name) // before looking, so that no change falls between
		response, again := w.look()
		if !r.GetWait() {
			response.Done = true
		}
		if now := a.Now(); response.GetDone() || now.Sub(sent) >= sendInterval {
			if err := stream.Send(response); err != nil {
				return err
			}
			sent = now
		} else {
			again = min(again, sendInterval-now.Sub(sent)) // what is not told now must not wait for the next change
		}
		if response.GetDone() {
			return nil
		}
		if err := pause(ctx, changed, again); err != nil {
			return err
		}
	}
}

// pause waits for a change, at most for again, and then a little more for the changes that come with it.
func pause(ctx context.Context, changed <-chan struct{}, again time.Duration) error {
	timer := time.NewTimer(again)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	case <-changed:
	}
	timer.Reset(lookInterval)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// wait is one Status call.
type wait struct {
	*Server
	tenant   string
	revision int64
	percent  int
	expected []string
	gone     map[string]time.Time // expected proxies that are not connected, since when
}

// look tells how far the expected proxies are, and when to look again even if nothing changes.
func (w *wait) look() (*adminv1.StatusResponse, time.Duration) {
	connected := w.Fleet.Connected(w.tenant)
	progress := w.Fleet.Progress(w.tenant, w.revision)
	serving := set(progress.Serving)
	here := set(connected)
	response := &adminv1.StatusResponse{Tenant: w.tenant, Revision: w.revision, Total: int32(len(w.expected))}
	if view, ok := w.Publisher.View(w.tenant); ok {
		response.Head = view.Revision
	}
	again, lagging, pending, refused := sendInterval*10, 0, 0, 0
	for _, id := range w.expected {
		switch {
		case serving[id]:
			response.Serving++
			delete(w.gone, id)
		case progress.Refused[id] != nil:
			refused++
			delete(w.gone, id)
		case here[id]:
			delete(w.gone, id)
			pending++
			if lagging++; lagging <= maxLagging {
				response.Lagging = append(response.Lagging, id)
			}
		default:
			if left := w.left(id); left > 0 {
				pending++
				again = min(again, left)
			}
		}
	}
	w.tellRefusals(response, progress)
	response.Disconnected = w.disconnected(w.tenant, connected)
	for _, id := range w.expected { // also those that the registry does not know, such as a client removed meanwhile
		if _, gone := w.gone[id]; gone && !slices.Contains(response.Disconnected, id) {
			response.Disconnected = append(response.Disconnected, id)
		}
	}
	response.Objects = w.objects(progress)
	// Those that went away are listed, not waited for: they follow when they are back.
	staying := int(response.Serving) + refused + pending
	response.Done = int(response.Serving)*100 >= w.percent*staying || (int(response.Serving)+pending)*100 < w.percent*staying
	return response, again
}

// left is how long a proxy that is not connected is still waited for.
func (w *wait) left(id string) time.Duration {
	since, ok := w.gone[id]
	if !ok {
		since = w.Now()
		w.gone[id] = since
	}
	return reconnectGrace - w.Now().Sub(since)
}

func (w *wait) tellRefusals(response *adminv1.StatusResponse, progress Progress) {
	for _, id := range slices.Sorted(maps.Keys(progress.Refused)) {
		for _, r := range progress.Refused[id] {
			object, field := w.Publisher.Origin(w.tenant, r)
			response.Refused = append(response.Refused, &adminv1.ProxyRefusal{Proxy: id, Object: object, Field: field, Reason: r.GetReason()})
		}
	}
}

func set(names []string) map[string]bool {
	all := make(map[string]bool, len(names))
	for _, name := range names {
		all[name] = true
	}
	return all
}

// objects tells what is bad: what proxies refuse, what they report, and what the control plane itself could not do.
func (w *wait) objects(progress Progress) []*adminv1.ObjectStatus {
	found := map[[3]string]*adminv1.ObjectStatus{}
	add := func(object, state, reason, proxy string) {
		key := [3]string{object, state, reason}
		if found[key] == nil {
			found[key] = &adminv1.ObjectStatus{Object: object, State: state, Reason: reason}
		}
		if s := found[key]; proxy != "" && !slices.Contains(s.Proxies, proxy) {
			s.Proxies = append(s.Proxies, proxy)
		}
	}
	refused := map[[2]string]bool{} // by proxy and object
	for proxy, refusals := range progress.Refused {
		for _, r := range refusals {
			object, field := w.Publisher.Origin(w.tenant, r)
			reason := r.GetReason()
			if field != "" {
				reason = field + ": " + reason
			}
			add(object, "Refused", reason, proxy)
			refused[[2]string{proxy, object}] = true
		}
	}
	w.reports.each(w.tenant, w.revision, progress.Serving, func(proxy, resource, state, reason string) {
		object, _ := w.Publisher.Origin(w.tenant, refusalOf(resource))
		if !refused[[2]string{proxy, object}] { // else the refusal has said why
			add(object, state, reason, proxy)
		}
	})
	for _, s := range w.Publisher.Warnings(w.tenant) {
		add(s.GetObject(), s.GetState(), s.GetReason(), "")
	}
	all := slices.Collect(maps.Values(found))
	for _, s := range all {
		slices.Sort(s.Proxies)
	}
	slices.SortFunc(all, func(a, b *adminv1.ObjectStatus) int {
		return slices.Compare([]string{a.Object, a.State, a.Reason}, []string{b.Object, b.State, b.Reason})
	})
	return all
}

// ListProxies returns the known proxies: of all groups, or of those that serve a tenant.
func (a admin) ListProxies(ctx context.Context, _ *adminv1.ListProxiesRequest) (*adminv1.ListProxiesResponse, error) {
	c := callerOf(ctx)
	name := c.tenant
	var ports map[string]bool // the tenant's own; nil: all
	if name != "" {
		view, ok := a.Publisher.View(name)
		if !ok {
			return nil, noTenant(name)
		}
		ports = listenerPorts(view.Objects)
	}
	groups, serving := a.Publisher.Groups(), a.Fleet.Serving()
	response := &adminv1.ListProxiesResponse{}
	for _, p := range a.Registry.Proxies() {
		if name != "" && !slices.Contains(groups[p.Group], name) {
			continue
		}
		revisions, connected := serving[p.ID]
		shown := &adminv1.Proxy{
			Name: p.ID, Group: p.Group, Connected: connected, Revoked: p.Revoked, Revisions: only(revisions, name),
			CertificateExpires: timestamppb.New(p.Expires),
		}
		if r := a.reports.of(p.ID); r != nil {
			shown.LastSeen, shown.Version = timestamppb.New(r.at), r.report.GetVersion()
			shown.Listeners, shown.Stale = onPorts(r.report.GetListeners(), ports), r.stale(name)
			if c.Role == tenant.PlatformAdmin {
				shown.Ops = r.report.GetOps() // its metrics tell of every tenant that it serves
			}
		}
		if connected {
			shown.LastSeen = timestamppb.New(a.Now())
		}
		response.Proxies = append(response.Proxies, shown)
	}
	return response, nil
}

func listenerPorts(objects store.Objects) map[string]bool {
	ports := map[string]bool{}
	for o := range objects.Kind("listener") {
		ports[strconv.FormatUint(uint64(o.Object.GetListener().GetPort()), 10)] = true
	}
	return ports
}

// onPorts keeps the addresses with these ports: a proxy that several tenants share listens for each of them.
func onPorts(addresses []string, ports map[string]bool) []string {
	if ports == nil {
		return addresses
	}
	var own []string
	for _, address := range addresses {
		if _, port, err := net.SplitHostPort(address); err == nil && ports[port] {
			own = append(own, address)
		}
	}
	return own
}

// only keeps one tenant's revision: a tenant sees no other's name. An empty name keeps all.
func only(revisions map[string]int64, name string) map[string]int64 {
	if name == "" {
		return revisions
	}
	if revision, ok := revisions[name]; ok {
		return map[string]int64{name: revision}
	}
	return nil
}
