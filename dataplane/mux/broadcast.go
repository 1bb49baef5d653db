package mux

import (
	"context"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// notification brings a client's notification to those whom it may concern. Which target a cancelled request or a
// progress token belongs to is known to the targets alone: they ignore what they do not know.
func (m *Mux) notification(w http.ResponseWriter, x *Request) error {
	if info := x.Message.Info(); info.Name != "" && !info.Notification || info.Name == "" && mcp.Disguised(x.Message.Method) {
		// A target might do what is asked, though nobody waits for the answer, and rules are asked about requests.
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "%s is a request: it needs an id", x.Message.Method)
	}
	if x.stateless() {
		return m.statelessNotification(w, x)
	}
	if t := x.alone(); t != nil {
		return x.forwardNotification(w, t)
	}
	msg := x.Message
	known := msg.Info().Name != ""
	// A client that leaves has sent it all the same, to each: the targets' own deadlines bound it.
	x.each(context.WithoutCancel(x.HTTP.Context()), func(ctx context.Context, x *Request, t *snapshot.Target) error {
		if msg.Method == "notifications/initialized" {
			if _, sealed := x.Session.Target(t.Name); !sealed {
				return nil // a session that is made later sends its own
			}
		}
		if !known && x.admit(ctx, t, policy.None, "", "") != nil {
			return nil
		}
		body, err := x.guardRequest(ctx, t, item{}, msg.Method, msg.Body)
		if err != nil {
			return nil // a notification has no answer that could tell
		}
		resp, err := x.send(ctx, t, outgoing{body: body, method: msg.Method})
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	})
	if err := x.inCommon(w.Header()); err != nil {
		return err
	}
	return accepted(w)
}

// forwardNotification passes one on to the only target, and its answer back.
func (x *Request) forwardNotification(w http.ResponseWriter, t *snapshot.Target) error {
	ctx, done := x.callContext(t)
	defer done()
	if x.Message.Info().Name == "" {
		if err := x.admit(ctx, t, policy.None, "", ""); err != nil {
			return accepted(w) // a notification has no answer that could tell
		}
	}
	body, err := x.guardRequest(ctx, t, item{}, x.Message.Method, x.Message.Body)
	if err != nil {
		return accepted(w)
	}
	resp, err := x.send(ctx, t, outgoing{body: body, method: x.Message.Method})
	if err != nil {
		return err
	}
	return x.relay(ctx, w, t, resp, item{})
}

// statelessNotification: on HTTP 2026-07-28 has none of its own; what an extension has goes to the only target.
func (m *Mux) statelessNotification(w http.ResponseWriter, x *Request) error {
	t := x.alone()
	if t == nil || x.Message.Method == "notifications/cancelled" {
		return accepted(w)
	}
	return x.forwardNotification(w, t)
}

func (x *Request) order(t *snapshot.Target) int {
	for i, other := range x.Backend.Targets {
		if other == t {
			return i
		}
	}
	return -1
}

// each runs f for all targets at once, each within its deadline and with a Record of its own, and returns their errors
// in the order of the targets.
func (x *Request) each(ctx context.Context, f func(context.Context, *Request, *snapshot.Target) error) []error {
	return x.eachOf(ctx, x.Backend.Targets, f)
}

func (x *Request) eachOf(ctx context.Context, targets []*snapshot.Target, f func(context.Context, *Request, *snapshot.Target) error) []error {
	errs := make([]error, len(targets))
	records := make([]Record, len(targets))
	one := func(i int, t *snapshot.Target) {
		ctx, cancel := x.mux.fanOut(ctx, t)
		defer cancel()
		own := *x
		own.Record = &records[i]
		errs[i] = f(ctx, &own, t)
	}
	var all group
	for i, t := range targets {
		if i == len(targets)-1 {
			one(i, t) // the last one needs no goroutine
			break
		}
		all.run(func() { one(i, t) })
	}
	all.wait()
	for i, t := range targets {
		if i > 0 {
			x.Record.Target += ","
		}
		x.Record.Target += t.Name
		if r := records[i]; r.Err != nil && x.Record.Err == nil {
			x.Record.Err = r.Err
		}
		if r := records[i]; r.Refused && !x.Record.Refused {
			x.Record.Refused, x.Record.Rule = true, r.Rule
		}
		x.Record.Status = max(x.Record.Status, records[i].Status)
	}
	return errs
}
