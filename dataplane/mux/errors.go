package mux

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// Error is a refusal with headers of its own, such as Retry-After.
type Error struct {
	Refusal *mcp.Error
	Header  http.Header
}

func (e *Error) Error() string { return e.Refusal.Error() }

// Unwrap makes errors.As find the [mcp.Error].
func (e *Error) Unwrap() error { return e.Refusal }

// fail is a refusal of the request at hand.
func (x *Request) fail(status, code int, format string, args ...any) *mcp.Error {
	e := &mcp.Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
	if x.Message != nil {
		e.ID = x.Message.RawID()
	}
	return e
}

// Misanswered notes what a target answered, with which status, that is of no use to any client, for `sluice status`. It is not the
// target's fault if the client has left, which ends the answer, or if the status may be due to what the client wrote.
func (x *Request) Misanswered(t *snapshot.Target, status int, err error) {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone:
	default:
		if status/100 == 4 {
			return
		}
	}
	if x.HTTP.Context().Err() == nil {
		x.mux.cfg.Failed(t, err)
	}
}

// misanswered is fail for such an answer.
func (x *Request) misanswered(t *snapshot.Target, status int, format string, args ...any) *mcp.Error {
	e := x.fail(status, mcp.CodeInternal, format, args...)
	x.Misanswered(t, http.StatusOK, errors.New(e.Message))
	return e
}

// unreachable says that a target brought no answer, without what only operators may know.
func (x *Request) unreachable(t *snapshot.Target, err error) error {
	x.Record.Err = err
	if value, ok := errors.AsType[*policy.ValueError](err); ok {
		return x.unsayable(t, value)
	}
	if tls, ok := errors.AsType[*upstream.HandshakeError](err); ok {
		return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q: %s", t.Name, tls.Reason)
	}
	if auth, ok := errors.AsType[*policy.AuthError](err); ok {
		return &Error{x.fail(auth.Status, mcp.CodeInvalidRequest, "target %q needs the caller's own token: %s", t.Name, auth.Reason),
			http.Header{"Www-Authenticate": {x.Route.Policy.BearerChallenge(x.HTTP)}}}
	}
	if _, ok := errors.AsType[*policy.CredentialError](err); ok {
		return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q: the proxy could not obtain its credential", t.Name)
	}
	switch {
	case errors.Is(err, upstream.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return x.fail(http.StatusGatewayTimeout, mcp.CodeInternal, "target %q did not answer in time", t.Name)
	case errors.Is(err, upstream.ErrFull):
		return &Error{x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "target %q is busy: as many calls run as it takes at a time", t.Name), retryAfter("1")}
	case errors.Is(err, upstream.ErrBusy):
		return &Error{x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "target %q takes no more connections now", t.Name), retryAfter("1")}
	case upstream.NotSent(err):
		return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q cannot be reached", t.Name)
	default:
		return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q broke off its answer; it may have processed the request", t.Name)
	}
}

// unsayable says which value of a target's policies could not be had for the request at hand. What it had to read is the
// client's or the operator's to put right, so both are told where.
func (x *Request) unsayable(t *snapshot.Target, e *policy.ValueError) error {
	x.Record.Err = e
	if e.Invalid != nil {
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "%v", e.Invalid)
	}
	return x.fail(http.StatusInternalServerError, mcp.CodeInternal, "target %q: %s: %s", t.Name, e.Field, e.Reason)
}

// refusedConfig says that a target has no configuration that builds.
func (x *Request) refusedConfig(t *snapshot.Target) error {
	x.Record.Err = t.Refused
	return x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "target %q cannot be served: this proxy refused its configuration", t.Name)
}

// sessionGone makes the client begin anew.
func (x *Request) sessionGone() error {
	return x.fail(http.StatusNotFound, -32001, "Session not found")
}

func retryAfter(v string) http.Header { return http.Header{"Retry-After": {v}} }

// notFound answers for an item that does not exist, and for one that a policy refuses: byte for byte the same, and
// with the name as the client wrote it.
func (x *Request) notFound(kind policy.ItemKind, name string) *mcp.Error {
	switch kind {
	case policy.Tool:
		return x.fail(http.StatusOK, mcp.CodeInvalidParams, "Unknown tool: %s", name)
	case policy.Prompt:
		return x.fail(http.StatusOK, mcp.CodeInvalidParams, "Unknown prompt: %s", name)
	case policy.Task:
		return x.fail(http.StatusOK, mcp.CodeInvalidParams, "Unknown task: %s", name)
	case policy.Resource, policy.Template:
		e := x.fail(http.StatusOK, x.revision().ResourceNotFound(), "Resource not found")
		e.Data = append(mcp.AppendString([]byte(`{"uri":`), name), '}')
		return e
	default:
		return x.unknownMethod()
	}
}

func (x *Request) unknownMethod() *mcp.Error {
	status := http.StatusOK
	if x.stateless() {
		status = http.StatusNotFound // 2026-07-28 ties the status to the code
	}
	return x.fail(status, mcp.CodeMethodNotFound, "Method not found: %s", x.Message.Method)
}

// asError is any error as one that can be answered.
func (x *Request) asError(err error) *mcp.Error {
	if e, ok := errors.AsType[*mcp.Error](err); ok {
		return e
	}
	return x.fail(http.StatusInternalServerError, mcp.CodeInternal, "the proxy met an error that it has no words for")
}
