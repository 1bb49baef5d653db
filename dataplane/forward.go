package dataplane

import (
	"context"
	"errors"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/listener"
	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/peers"
)

// forward has the owner of what a request is about answer it, once: a request that comes from a peer goes no further. Nothing is run
// here instead: a second child would not be the session's, and a call that may have run must not run again.
func (x *exchange) forward(owner string) error {
	var id []byte
	if x.message != nil {
		id = x.message.RawID()
	}
	lost := func(status int, text string) *mcp.Error {
		return &mcp.Error{Status: status, Code: mcp.CodeInternal, ID: id, Message: text}
	}
	if from := peers.From(x.r.Context()); from != "" {
		return lost(http.StatusServiceUnavailable, "proxy "+from+" took this one for the owner, which is "+owner+": try again")
	}
	if x.proxy.parts.Peers == nil {
		return lost(http.StatusServiceUnavailable, "what the request goes on with lives on another proxy of the fleet ("+owner+"), which this one cannot reach: send the request there, or begin anew")
	}
	x.owner = owner
	r := x.r
	if draining := listener.Draining(r.Context()); draining != nil && r.Method == http.MethodGet { // a standing stream
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		r = r.WithContext(ctx)
		go func() {
			select {
			case <-draining:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	err := x.proxy.parts.Peers.Forward(&x.w, r, x.port, owner, x.raw)
	gone, ok := errors.AsType[*peers.ErrLost](err)
	if !ok {
		return err
	}
	x.record.Err = err
	if x.r.Context().Err() != nil {
		return nil // the client has left, and the owner is not lost
	}
	if gone.Sent {
		err := lost(http.StatusBadGateway, "the proxy that has what the request goes on with ("+owner+") was lost; it may have processed the request: begin anew")
		if !gone.Begun {
			return err
		}
		if id == nil { // a standing stream, which its client takes up again
			panic(http.ErrAbortHandler)
		}
		// There are clients that wait for ever when a stream just breaks off. One that had its answer already has no use for another.
		_ = mcp.NewEventWriter(&x.w, http.NewResponseController(&x.w).Flush).Message(err.Append(nil))
		return nil
	}
	return lost(http.StatusServiceUnavailable, "the proxy that has what the request goes on with ("+owner+") cannot be reached: try again, or begin anew")
}
