package mux

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// attempt sends a request, and again as far as retry (nil: it does not) lets it: what the target cannot have processed, and
// of what it may see twice also what it refused for now or broke off before it answered.
func attempt(ctx context.Context, tr upstream.Transport, r *upstream.Request, retry *policy.Retry) (*upstream.Response, error) {
	if retry == nil {
		return tr.Do(ctx, r)
	}
	for n := 0; ; n++ {
		once := *r // the transport changes it
		once.Header = r.Header.Clone()
		resp, err := tr.Do(ctx, &once)
		if n == retry.Attempts || ctx.Err() != nil || !again(retry, r, resp, err) {
			return resp, err
		}
		wait, ok := retry.Wait(n, askedWait(resp))
		if at, bounded := ctx.Deadline(); !ok || bounded && time.Until(at) <= wait {
			return resp, err // this answer is better than none
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// again reports whether the same request may fare better next time, and does no harm.
func again(retry *policy.Retry, r *upstream.Request, resp *upstream.Response, err error) bool {
	safe := r.Safe || r.Method == http.MethodGet
	if err == nil {
		return safe && retry.On(resp.Status)
	}
	for _, lasting := range []error{upstream.ErrClosed, upstream.ErrFull, upstream.ErrProtocol} {
		if errors.Is(err, lasting) {
			return false
		}
	}
	own, ok := errors.AsType[*upstream.Error](err)
	if !ok || own.Op == "configure" || own.Op == "authenticate" {
		return false // it would be the same, or has been tried again already
	}
	if _, refused := errors.AsType[*policy.AddressError](err); refused {
		return false
	}
	return !own.Sent || safe && !errors.Is(err, upstream.ErrTimeout)
}

// askedWait is how long a target asks to be left alone (RFC 9110 section 10.2.3), 0 if it does not.
func askedWait(resp *upstream.Response) time.Duration {
	if resp == nil {
		return 0
	}
	value := resp.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
