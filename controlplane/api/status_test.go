package api

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/sluicegate/sluice/controlplane/tenant"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// messages is the sending end of a Status stream.
type messages struct {
	grpc.ServerStream
	ctx  context.Context
	sent []*adminv1.StatusResponse
}

func (m *messages) Context() context.Context { return m.ctx }
func (m *messages) Send(r *adminv1.StatusResponse) error {
	m.sent = append(m.sent, r)
	return nil
}

// TestStatusWait drives a fleet by the clock and looks when the wait ends, and how.
func TestStatusWait(t *testing.T) {
	refusal := map[string][]*xdsv1.Refusal{"b": {{Name: "target/x", Field: "f", Reason: "r"}}}
	serves := func(ids ...string) func(*connections) {
		return func(c *connections) { c.progress.Serving = ids }
	}
	here := func(ids ...string) func(*connections) { return func(c *connections) { c.connected = ids } }
	type event struct {
		at time.Duration
		do func(*connections)
	}
	for _, tt := range []struct {
		name    string
		percent uint32
		events  []event
		ends    time.Duration // within lookInterval; 0: at once
		never   bool
		want    *adminv1.StatusResponse
	}{
		{"all serve", 0, []event{{time.Second, serves("a", "b")}, {2 * time.Second, serves("a", "b", "c")}}, 2 * time.Second, false,
			&adminv1.StatusResponse{Total: 3, Serving: 3}},
		{"a share is enough", 60, []event{{time.Second, serves("a")}, {2 * time.Second, serves("a", "b")}}, 2 * time.Second, false,
			&adminv1.StatusResponse{Total: 3, Serving: 2, Lagging: []string{"c"}}},
		{"one refuses: all cannot be any more", 0, []event{{time.Second, func(c *connections) { c.progress.Refused = refusal }}}, time.Second, false,
			&adminv1.StatusResponse{Total: 3, Lagging: []string{"a", "c"}}},
		{"one refuses: a share still can", 60, []event{{time.Second, func(c *connections) { c.progress.Refused = refusal }}, {2 * time.Second, serves("a", "c")}}, 2 * time.Second, false,
			&adminv1.StatusResponse{Total: 3, Serving: 2}},
		{"one goes for good", 0, []event{{time.Second, here("a", "b")}, {2 * time.Second, serves("a", "b")}}, time.Second + reconnectGrace, false,
			&adminv1.StatusResponse{Total: 3, Serving: 2, Disconnected: []string{"c"}}},
		{"one goes and comes back with it", 0, []event{{time.Second, here("a", "b")}, {2 * time.Second, serves("a", "b")},
			{3 * time.Second, func(c *connections) { here("a", "b", "c")(c); serves("a", "b", "c")(c) }}}, 3 * time.Second, false,
			&adminv1.StatusResponse{Total: 3, Serving: 3}},
		{"one goes, comes back, and lags", 0, []event{{time.Second, here("a", "b")}, {3 * time.Second, here("a", "b", "c")}, {4 * time.Second, serves("a", "b")}}, 0, true, nil},
		{"nobody answers", 0, nil, 0, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newConnections("a", "b", "c")
			s, _ := newServer(t, c)
			synctest.Test(t, func(t *testing.T) {
				c.changed = make(chan struct{})
				s.Now = time.Now
				ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), callerKey{}, caller{Actor: tenant.Actor{}, tenant: "acme"}), time.Minute)
				defer cancel()
				m := &messages{ctx: ctx}
				start := time.Now()
				for _, e := range tt.events {
					time.AfterFunc(e.at, func() { c.set(e.do) })
				}
				err := (admin{Server: s}).Status(&adminv1.StatusRequest{Wait: true, Percent: tt.percent, Expected: []string{"a", "b", "c"}}, m)
				took := time.Since(start)
				if tt.never {
					if err == nil {
						t.Fatalf("the wait ended after %s with %v", took, m.sent[len(m.sent)-1])
					}
					return
				}
				if err != nil || took < tt.ends || took > tt.ends+2*lookInterval {
					t.Fatalf("the wait ended after %s, %v, want %s", took, err, tt.ends)
				}
				last := m.sent[len(m.sent)-1]
				got := []any{last.Total, last.Serving, last.Lagging, last.Disconnected, last.Done}
				want := []any{tt.want.Total, tt.want.Serving, tt.want.Lagging, tt.want.Disconnected, true}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("total, serving, lagging, disconnected, done (-want +got):\n%s", diff)
				}
				for _, early := range m.sent[:len(m.sent)-1] {
					if early.Done {
						t.Error("a message before the last says done")
					}
				}
			})
		})
	}
}

// TestStatusTellsSoon: a change that comes right after a message is not kept back until something else happens.
func TestStatusTellsSoon(t *testing.T) {
	c := newConnections("a", "b")
	s, _ := newServer(t, c)
	synctest.Test(t, func(t *testing.T) {
		c.changed = make(chan struct{})
		s.Now = time.Now
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), callerKey{}, caller{Actor: tenant.Actor{}, tenant: "acme"}), 2*sendInterval)
		defer cancel()
		m := &messages{ctx: ctx}
		time.AfterFunc(time.Millisecond, func() { c.set(func(c *connections) { c.progress.Serving = []string{"a"} }) })
		if err := (admin{Server: s}).Status(&adminv1.StatusRequest{Wait: true, Expected: []string{"a", "b"}}, m); err == nil {
			t.Fatal("the wait ended, and b serves nothing")
		}
		if last := m.sent[len(m.sent)-1]; last.GetServing() != 1 {
			t.Errorf("within %s nothing more was told than %v", 2*sendInterval, last)
		}
	})
}

func TestStatusTellsRefusals(t *testing.T) {
	c := newConnections("a", "b")
	s, _ := newServer(t, c)
	c.progress = Progress{Serving: []string{"a"}, Refused: map[string][]*xdsv1.Refusal{"b": {{Name: "target/x", Field: "policies.ai", Reason: "no"}}}}
	m := &messages{ctx: context.WithValue(t.Context(), callerKey{}, caller{tenant: "acme"})}
	if err := (admin{Server: s}).Status(&adminv1.StatusRequest{}, m); err != nil {
		t.Fatal(err)
	}
	got := m.sent[0]
	if !got.Done || len(got.Refused) != 1 || got.Refused[0].Proxy != "b" || got.Refused[0].Object != "target/x" {
		t.Errorf("refused = %v", got.Refused)
	}
	if len(got.Objects) != 1 || got.Objects[0].State != "Refused" || got.Objects[0].Reason != "policies.ai: no" || got.Objects[0].Proxies[0] != "b" {
		t.Errorf("objects = %v", got.Objects)
	}
	if err := (admin{Server: s}).Status(&adminv1.StatusRequest{Revision: 4}, m); err == nil {
		t.Error("a revision that is not there has a status")
	}
}

// TestStatusForgetsOldReports: what a proxy reported before it took a revision whole is no word on that.
func TestStatusForgetsOldReports(t *testing.T) {
	c := newConnections("a")
	s, _ := newServer(t, c)
	c.progress = Progress{Serving: []string{"a"}}
	head := s.Publisher.(*published).views["acme"].Revision
	for reported, want := range map[int64]int{head - 1: 0, head: 1} { // the same revision: e.g. a file went away since
		s.reports.put("a", &fleetv1.ReportRequest{Tenants: []*fleetv1.TenantReport{{Tenant: "acme", Revision: reported}},
			Units: []*fleetv1.UnitReport{{Name: "acme/listener/main", Reason: "address already in use"}}}, time.Now())
		m := &messages{ctx: context.WithValue(t.Context(), callerKey{}, caller{tenant: "acme"})}
		if err := (admin{Server: s}).Status(&adminv1.StatusRequest{}, m); err != nil {
			t.Fatal(err)
		}
		if got := m.sent[0].GetObjects(); len(got) != want {
			t.Errorf("reported at revision %d of %d, objects are %v, want %d", reported, head, got, want)
		}
	}
}
