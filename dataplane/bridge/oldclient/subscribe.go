package oldclient

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// refuses asks the target whether it takes a subscription, by a listen that ends with its acknowledgement: that is what the answer
// to resources/subscribe tells, and one resource that it refuses may cost the session's own listen all others. Nil: it takes it.
func (f *sessionsFace) refuses(ctx context.Context, r *upstream.Request, uri string) (*refusal, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &standing{f: f, r: *r, subscribes: true}
	resp, err := s.ask(ctx, []string{uri})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if unauthorized(resp) {
		return nil, &unauthorizedError{f.t.Name, "subscriptions/listen", resp.Status, resp.Header}
	}
	none := &refusal{mcp.CodeMethodNotFound, "the target has no subscriptions"}
	if !isStream(resp) {
		msg, err := f.b.readJSON(resp)
		if err != nil || msg == nil {
			return none, err
		}
		return refusalOf(msg, none), nil
	}
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	events := mcp.NewEventReader(resp.Body, f.b.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return nil, &upstream.Error{Op: "listen", Target: f.t.Resource, Sent: true, Err: err}
		}
		if !ev.IsMessage() {
			continue
		}
		msg, err := mcp.Scan(bytes.Clone(ev.Data), f.b.cfg.Limits)
		switch {
		case err != nil:
			return nil, &upstream.Error{Op: "listen", Target: f.t.Resource, Sent: true, Err: err}
		case msg.Kind == mcp.Response:
			return refusalOf(&msg, none), nil
		case msg.Method == "notifications/subscriptions/acknowledged":
			var honoured struct{ ResourceSubscriptions []string }
			_ = json.Unmarshal(msg.Filter.Of(msg.Body), &honoured) // what cannot be read honours nothing
			if slices.Contains(honoured.ResourceSubscriptions, uri) {
				return nil, nil
			}
			return &refusal{mcp.CodeResourceNotFound, "the target takes no subscription of this resource"}, nil
		}
	}
}

// refusalOf is a target's own; none where it has given no other.
func refusalOf(msg *mcp.Message, none *refusal) *refusal {
	var own refusal
	if !msg.Error.Present() || json.Unmarshal(msg.Error.Of(msg.Body), &own) != nil || own.Code == mcp.CodeMethodNotFound {
		return none
	}
	return &own
}
