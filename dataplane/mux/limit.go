package mux

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// take takes the tokens that a request costs at a target. Only what a client asks for costs any: what it tells, answers or
// listens for without a request is a part of something that did, and a ping is how it sees that it is still there.
func (x *Request) take(t *snapshot.Target, kind policy.ItemKind, own string) error {
	if !t.Policy.Limited() || x.Message == nil || x.Message.Kind != mcp.Request || x.Message.Method == "ping" {
		return nil
	}
	return x.charge(t, kind, own)
}

// charge takes the tokens that a request costs at a target that has limits.
func (x *Request) charge(t *snapshot.Target, kind policy.ItemKind, own string) error {
	call := x.call(t, kind, own)
	limit, ok := errors.AsType[*policy.LimitError](t.Policy.Take(&call, &x.taken))
	if !ok {
		return nil
	}
	x.Record.Rule = limit.Rule
	if value := limit.Key; value != nil {
		return x.unsayable(t, value)
	}
	x.Record.Refused = true
	seconds := strconv.FormatInt(int64((limit.Retry+time.Second-1)/time.Second), 10)
	return &Error{x.fail(http.StatusTooManyRequests, mcp.CodeInvalidRequest, "too many requests: try again in %s s", seconds), retryAfter(seconds)}
}

// eachTaken is eachOf for what the client itself asks of all targets. Where they have a limit in common it costs one token.
func (x *Request) eachTaken(ctx context.Context, targets []*snapshot.Target, f func(context.Context, *Request, *snapshot.Target) error) []error {
	refused := map[*snapshot.Target]error{}
	errs := make([]error, len(targets))
	for i, t := range targets {
		if errs[i] = x.take(t, policy.None, ""); errs[i] != nil {
			refused[t] = errs[i]
		}
	}
	if len(refused) > 0 && !failsOpen(x.Backend) { // the answer will be an error, so nobody is bothered
		return errs
	}
	return x.eachOf(ctx, targets, func(ctx context.Context, own *Request, t *snapshot.Target) error {
		if err := refused[t]; err != nil {
			return err
		}
		return f(ctx, own, t)
	})
}
