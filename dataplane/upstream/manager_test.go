package upstream

import (
	"errors"
	"testing"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Connections and sessions outlive snapshots, and end when no snapshot uses them.
func TestRetain(t *testing.T) {
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			if r, _ := c.Read(); r == nil {
				return
			}
			c.JSON("{}")
		}
	})
	m := manager(t, nil)
	ask := func(tt *snapshot.Target) {
		t.Helper()
		res, err := m.Transport(tt).Do(limited(t), post("{}"))
		if err != nil {
			t.Fatal(err)
		}
		text(t, res)
	}
	first, second := httpTarget(t, s.URL, nil), httpTarget(t, s.URL, nil)
	if m.Transport(first) != m.Transport(first) {
		t.Error("two transports for one target")
	}
	ask(first)
	m.Retain([]*snapshot.Target{second})
	ask(second)
	if s.Conns() != 1 {
		t.Errorf("%d connections: the pool did not outlive the snapshot", s.Conns())
	}
	other := httpTarget(t, s.URL, nil)
	other.Tenant = &snapshot.Owner{Name: "other", Grants: first.Tenant.Grants}
	ask(other)
	if s.Conns() != 2 {
		t.Errorf("%d connections: two tenants share one", s.Conns())
	}

	child := stdioTarget(t, "serve", nil)
	same := stdioTarget(t, "serve", nil)
	changed := stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.Env["NEW"] = "1" })
	c := open(t, m.Transport(child))
	m.Retain([]*snapshot.Target{same})
	c.tr = m.Transport(same)
	if got := c.said("count", "{}"); got != "1" {
		t.Errorf("count %s", got)
	}
	slow := make(chan string)
	go func() { slow <- c.said("slow", `{"ms":300}`) }()
	time.Sleep(50 * time.Millisecond)
	old := c.tr
	m.Retain([]*snapshot.Target{changed})
	c2 := &caller{t: t, tr: m.Transport(changed), id: c.id, init: []byte(initialize)}
	res := c2.do("POST", toolCall("1", "env", `{"name":"NEW"}`))
	if _, said := answer(t, text(t, res)); said != "1" || !res.Renewed {
		t.Errorf("after the change: %q, renewed %v, want the new configuration's process", said, res.Renewed)
	}
	if got := <-slow; got != "done" {
		t.Errorf("the call under way ended with %q", got)
	}
	eventually(t, "the old process stops", func() bool { return m.Health()[0].Children == 1 })
	if old == c2.tr {
		t.Error("the same transport after a change")
	}
	m.Retain(nil)
	if h := m.Health(); len(h) != 0 {
		t.Errorf("health %+v of targets that are gone", h)
	}
}

func TestClose(t *testing.T) {
	s := mcptest.NewScript(t, func(c *mcptest.Conn) { c.Read(); c.Hang() })
	m := New(Config{})
	tr := m.Transport(httpTarget(t, s.URL, nil))
	done := make(chan error)
	go func() {
		_, err := tr.Do(limited(t), post("{}"))
		done <- err
	}()
	eventually(t, "the request is there", func() bool { return s.Conns() == 1 })
	time.Sleep(10 * time.Millisecond)
	if err := m.Close(limited(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("request under way: %v", err)
	}
	if _, err := tr.Do(limited(t), post("{}")); !errors.Is(err, ErrClosed) || !NotSent(err) {
		t.Errorf("later request: %v", err)
	}
	if _, err := m.Transport(stdioTarget(t, "serve", nil)).Do(limited(t), post(initialize)); !errors.Is(err, ErrClosed) {
		t.Errorf("later child: %v", err)
	}
}

func TestUnserved(t *testing.T) {
	why := errors.New("backendTLS.root is no certificate")
	_, err := manager(t, nil).Transport(&snapshot.Target{Resource: "acme/target/a/b", Tenant: &snapshot.Owner{Name: "acme"}, Refused: why}).Do(limited(t), post("{}"))
	if !errors.Is(err, why) || !NotSent(err) {
		t.Errorf("error %v", err)
	}
}
