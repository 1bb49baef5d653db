package mux

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// setLevel serves logging/setLevel: every target that logs is told, also by sessions that are begun there later. A target without
// logging is no error among several.
func (m *Mux) setLevel(w http.ResponseWriter, x *Request) error {
	if t := x.alone(); t != nil {
		err := x.forward(w, t, item{lifecycle: true})
		if err == nil && !x.Record.Failed {
			x.rememberLevel()
		}
		return err
	}
	errs := x.eachTaken(x.HTTP.Context(), x.Backend.Targets, func(ctx context.Context, x *Request, t *snapshot.Target) error {
		resp, err := x.send(ctx, t, outgoing{body: x.Message.Body, method: x.Message.Method, safe: true})
		var msg *mcp.Message
		if err == nil {
			msg, err = x.readResponse(t, resp)
		}
		if err == nil && msg.Error.Present() {
			if code, _ := msg.ErrorCode(); code != mcp.CodeMethodNotFound {
				err = x.fail(http.StatusOK, mcp.CodeInternal, "target %q refused the level", t.Name)
			}
		}
		return err
	})
	logs := slices.Contains(errs, nil)
	for _, err := range errs {
		if err != nil && !(logs && failsOpen(x.Backend)) {
			return err // of the first target in order that failed
		}
	}
	x.rememberLevel()
	if err := x.inCommon(w.Header()); err != nil {
		return err
	}
	return x.answer(w, nil)
}

func (x *Request) rememberLevel() {
	if level := x.Message.Level.String(); x.Session != nil && slices.Contains(mcp.LogLevels, level) {
		x.mux.levels.Put(x.Route.Tenant.Name, x.Session.Nonce, level, len(level), x.Session.Expires)
	}
}

// sayLevel tells a session that was begun later what the client has said to those before. A target that has no logs is right to
// refuse it; of one that fails the client cannot be told.
func (x *Request) sayLevel(ctx context.Context, t *snapshot.Target, leg session.Target) {
	if x.mux.levels.Empty() {
		return
	}
	level, ok := x.mux.levels.Get(x.Route.Tenant.Name, x.Session.Nonce)
	if !ok {
		return
	}
	own := *x
	own.Record = &Record{}
	body := mcp.AppendRequest(nil, x.mux.ownID(), "logging/setLevel", append(mcp.AppendString([]byte(`{"level":`), level), '}'))
	resp, err := own.do(ctx, t, leg, outgoing{body: body, method: "logging/setLevel", safe: true})
	if err == nil {
		resp, err = own.check(t, resp)
	}
	var msg *mcp.Message
	if err == nil {
		msg, err = own.readMessage(t, resp, own.scanned())
	}
	if err == nil && msg.Error.Present() {
		if code, _ := msg.ErrorCode(); code == mcp.CodeMethodNotFound {
			return
		}
		err = errors.New(msg.ErrorLine())
	}
	if err != nil {
		x.mux.log.Warn("a new session at a target did not take the client's log level", "tenant", t.Tenant.Name, "target", t.Name, "level", level, "err", err)
	}
}
