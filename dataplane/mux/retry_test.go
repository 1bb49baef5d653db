package mux

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// outcomes is a transport that does one thing after the other; what it does last it does for good.
type outcomes struct {
	list    []any // an error, or a status with maybe its Retry-After
	at      []time.Time
	closed  int
	changed bool // a request came as the one before it was left
}

type status struct {
	code  int
	after string
}

func (o *outcomes) Owned() bool { return false }

func (o *outcomes) Do(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
	next := o.list[min(len(o.at), len(o.list)-1)]
	o.at = append(o.at, time.Now())
	o.changed = o.changed || r.Header.Get("X-Sent") != ""
	r.Header.Set("X-Sent", "1")
	if err, ok := next.(error); ok {
		return nil, err
	}
	s := next.(status)
	h := http.Header{}
	if s.after != "" {
		h.Set("Retry-After", s.after)
	}
	return &upstream.Response{Status: s.code, Header: h, Body: &counting{o}}, nil
}

type counting struct{ o *outcomes }

func (c *counting) Read([]byte) (int, error) { return 0, io.EOF }
func (c *counting) Close() error             { c.o.closed++; return nil }

func TestAttempts(t *testing.T) {
	target, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: &policyv1.Policies{Retry: &policyv1.Retry{Attempts: 2, Codes: []uint32{429, 503}}}}, policy.HTTP, policy.Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	retry := target.Retry()
	down := &upstream.Error{Op: "dial", Err: errors.New("refused")}
	broken := &upstream.Error{Op: "read head", Sent: true, Err: io.ErrUnexpectedEOF}
	of := func(op string, sent bool, err error) error { return &upstream.Error{Op: op, Sent: sent, Err: err} }
	good, busy := status{200, ""}, status{503, ""}
	for _, tt := range []struct {
		name  string
		safe  bool
		list  []any
		tries int
		ok    bool
	}{
		{"good at once", true, []any{good}, 1, true},
		{"never sent, a call", false, []any{down, good}, 2, true},
		{"never sent, three times", false, []any{down}, 3, false},
		{"broken, a call", false, []any{broken, good}, 1, false},
		{"broken, a read", true, []any{broken, good}, 2, true},
		{"503, a call", false, []any{busy, good}, 1, true},
		{"503, a read", true, []any{busy, good}, 2, true},
		{"503 for good", true, []any{busy}, 3, true},
		{"one of each", true, []any{busy, broken, good}, 3, true},
		{"another status", true, []any{status{500, ""}, good}, 1, true},
		{"a timeout, a read", true, []any{of("read head", true, upstream.ErrTimeout), good}, 1, false},
		{"a malformed answer", true, []any{of("read head", true, upstream.ErrProtocol), good}, 1, false},
		{"no turn", true, []any{of("wait", false, upstream.ErrFull), good}, 1, false},
		{"closed", true, []any{of("dial", false, upstream.ErrClosed), good}, 1, false},
		{"no credential", true, []any{of("authenticate", false, errors.New("x")), good}, 1, false},
		{"an address that is not granted", true, []any{of("dial", false, &policy.AddressError{}), good}, 1, false},
		{"Retry-After", true, []any{status{429, "7"}, good}, 2, true},
		{"Retry-After, too long", true, []any{status{429, "11"}, good}, 1, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			tr := &outcomes{list: tt.list}
			resp, err := attempt(t.Context(), tr, &upstream.Request{Method: http.MethodPost, Header: http.Header{}, Safe: tt.safe}, retry)
			if len(tr.at) != tt.tries || (err == nil) != tt.ok {
				t.Errorf("%s: %d tries, want %d: %v", tt.name, len(tr.at), tt.tries, err)
			}
			if tr.changed {
				t.Errorf("%s: a request is sent again as the transport left it", tt.name)
			}
			answers := 0
			for i := range tr.at {
				if _, ok := tt.list[min(i, len(tt.list)-1)].(status); ok {
					answers++
				}
			}
			if want := answers; err == nil && tr.closed != want-1 || resp != nil && err != nil {
				t.Errorf("%s: %d of %d answers are closed", tt.name, tr.closed, want)
			}
			for i, least := range []time.Duration{50 * time.Millisecond, 100 * time.Millisecond} {
				if i+1 < len(tr.at) {
					if d := tr.at[i+1].Sub(tr.at[i]); d < least || tt.name == "Retry-After" && d != 7*time.Second {
						t.Errorf("%s: attempt %d after %v", tt.name, i+1, d)
					}
				}
			}
		})
	}
}

// Waiting ends with the call, and does not begin where the call would end first.
func TestAttemptsWithinTheCall(t *testing.T) {
	target, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: &policyv1.Policies{Retry: &policyv1.Retry{Attempts: 5}}}, policy.HTTP, policy.Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	r := &upstream.Request{Method: http.MethodPost, Header: http.Header{}, Safe: true}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		tr := &outcomes{list: []any{status{503, "5"}}}
		resp, err := attempt(ctx, tr, r, target.Retry())
		if err != nil || resp.Status != 503 || len(tr.at) != 1 {
			t.Errorf("a wait beyond the deadline: %v, %d tries", err, len(tr.at))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		time.AfterFunc(3*time.Second, func() { cancel(gone) })
		tr := &outcomes{list: []any{status{503, "5"}}}
		started := time.Now()
		if _, err := attempt(ctx, tr, r, target.Retry()); !errors.Is(err, gone) || time.Since(started) != 3*time.Second || tr.closed != 1 {
			t.Errorf("a client that left: %v after %v", err, time.Since(started))
		}
	})
	tr := &outcomes{list: []any{&upstream.Error{Op: "dial"}}}
	if _, err := attempt(t.Context(), tr, r, nil); err == nil || len(tr.at) != 1 {
		t.Errorf("without the policy: %v, %d tries", err, len(tr.at))
	}
	if got := slices.Collect(func(yield func(time.Duration) bool) {
		for _, v := range []string{"", "x", "-1", "3", "Mon, 01 Jan 2001 00:00:00 GMT"} {
			yield(askedWait(&upstream.Response{Header: http.Header{"Retry-After": {v}}}))
		}
	}); !slices.Equal(got, []time.Duration{0, 0, 0, 3 * time.Second, 0}) {
		t.Errorf("Retry-After: %v", got)
	}
}
