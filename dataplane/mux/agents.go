package mux

import (
	"context"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
)

// What a request needs of the multiplexer whose target speaks A2A; all else of it is package agent's.

// Adopt makes x a request of m, which does not go through [Mux.Serve]. kind and own are what it is about, for policies.
func (m *Mux) Adopt(x *Request, kind policy.ItemKind, own string) {
	x.mux, x.item = m, item{kind: kind, own: own}
	x.Record.Name = own
}

// Exchange sends one request to a target and returns its answer, whatever its status. An error can be answered.
func (x *Request) Exchange(ctx context.Context, t *snapshot.Target, r *upstream.Request) (*upstream.Response, error) {
	if t.Refused != nil {
		return nil, x.refusedConfig(t)
	}
	return x.exchange(ctx, t, x.mux.cfg.Transport(t), r, session.Target{})
}

// Within bounds what one target may take for an answer that nobody waits for longer.
func (x *Request) Within(ctx context.Context, t *snapshot.Target) (context.Context, context.CancelFunc) {
	return x.mux.fanOut(ctx, t)
}

// Take takes the tokens that the request costs at a target, whatever it is.
func (x *Request) Take(t *snapshot.Target) error {
	if !t.Policy.Limited() {
		return nil
	}
	return x.charge(t, x.item.kind, x.item.own)
}

// Bound is how long a call at a target may take until the end of its answer; the client's leaving ends it too.
func (x *Request) Bound(t *snapshot.Target) (context.Context, context.CancelFunc) {
	ctx := x.HTTP.Context()
	if d := deadline(t); d > 0 {
		return context.WithTimeoutCause(ctx, d, upstream.ErrTimeout)
	}
	return context.WithCancel(ctx)
}

// Guard lets guards see a whole message of A2A, or a card, by its shape.
func (x *Request) Guard(ctx context.Context, t *snapshot.Target, d policy.Direction, message []byte, shape *guard.Shape) ([]byte, error) {
	if !t.Policy.Guards(d) {
		return message, nil
	}
	call := x.call(t, x.item.kind, x.item.own)
	out, note, err := t.Policy.Guard(ctx, &call, d, message, shape)
	if x.noteUndecided(note); err != nil {
		return nil, x.guarded(err, guardCode(d))
	}
	return out, nil
}

// Found is the refusal for what one of a target's filters found in several messages together.
func (x *Request) Found(t *snapshot.Target, d policy.Direction, f *guard.Finding) error {
	return x.guarded(t.Policy.Found(f), guardCode(d))
}

// guardCode is the code of a guard's refusal.
func guardCode(d policy.Direction) int {
	if d == policy.ToClient {
		return mcp.CodeInternal
	}
	return mcp.CodeInvalidParams
}

// Listing makes what rules decide about the entries of one list of a target share a budget: it returns whether they may admit one.
func (x *Request) Listing(t *snapshot.Target, kind policy.ItemKind) func(own string) bool {
	x.work = &policy.Work{}
	return func(own string) bool { return x.admitList(t, kind, own, nil) }
}

// Call is what policies may know of a call about one item of a target.
func (x *Request) Call(t *snapshot.Target, kind policy.ItemKind, own string) policy.Call {
	return x.call(t, kind, own)
}

// Pass copies the client's headers that a target gets.
func (x *Request) Pass(t *snapshot.Target, h http.Header) { x.pass(t, h) }

// Modify makes h the headers of a target's answer: for this caller alone where it has to be, and with the target's
// responseHeaderModifier applied.
func (x *Request) Modify(h http.Header, t *snapshot.Target) error {
	if x.private(t) {
		unshare(h)
	}
	return x.modify(h, t)
}

// Unreachable is why the answer of a target cannot be had, as a client may know it.
func (x *Request) Unreachable(t *snapshot.Target, err error) error { return x.unreachable(t, err) }

// Unauthorized is for a target's answer of 401 or 403.
func (x *Request) Unauthorized(t *snapshot.Target, resp *upstream.Response) error {
	return x.unauthorized(t, resp)
}

// StepUp refuses what a token with more scopes may do.
func (x *Request) StepUp(v policy.Verdict) error { return x.stepUp(v) }

// Fail is a refusal of x.
func (x *Request) Fail(status, code int, format string, args ...any) *mcp.Error {
	return x.fail(status, code, format, args...)
}

// Limits are those of messages; their Bytes are set.
func (x *Request) Limits() mcp.Limits {
	lim := x.mux.cfg.Limits
	lim.Bytes = x.mux.cfg.Limits.MaxBytes()
	return lim
}
