package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/internal/policy"
)

// endpointTime bounds how long an HTTP+SSE target may take to say where messages go.
const endpointTime = 30 * time.Second

// ssePipe is a session of the HTTP+SSE transport (2024-11-05): a stream that the target talks on, and an endpoint
// that takes what the client says.
type ssePipe struct {
	ch     *channel
	ep     *endpoint // as it was when the stream was opened: for what we say ourselves
	to     *url.URL
	line   string
	header http.Header // of the request that opened the stream, for what we say ourselves
	who    policy.Call
	cancel context.CancelCauseFunc
	over   chan struct{}
	posts  chan struct{} // holds one for each post under way
}

// maxPosts bounds what is said at once to a target that nobody waits for.
const maxPosts = 16

// openSSE opens the stream with the headers of a request, and waits for the endpoint.
func openSSE(ctx context.Context, o *owned, r *Request, ch *channel) error {
	ctx, stop := context.WithTimeoutCause(ctx, endpointTime, ErrTimeout)
	defer stop()
	streaming, cancel := context.WithCancelCause(context.Background()) // outlives the request
	unlink := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	p := &ssePipe{ch: ch, ep: o.http, cancel: cancel, over: make(chan struct{}), posts: make(chan struct{}, maxPosts), header: forStream(r.Header), who: r.Call}
	res, err := o.http.Do(streaming, &Request{Method: http.MethodGet, Header: p.header.Clone(), Call: r.Call})
	if err != nil {
		cancel(nil)
		unlink()
		return err
	}
	events, err := p.begin(o.http, res, o.s.cfg.MaxMessage)
	if !unlink() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		res.Body.Close()
		cancel(nil)
		return &Error{Op: "open the event stream", Err: err}
	}
	ch.pipe = p
	go p.listen(events, res.Body)
	return nil
}

// forStream is the header of a GET made from that of a POST.
func forStream(h http.Header) http.Header {
	h = h.Clone()
	h.Del("Content-Type")
	h.Del(sessionHeader)
	h.Set("Accept", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	return h
}

// begin checks the stream's head and reads up to its endpoint.
func (p *ssePipe) begin(e *endpoint, res *Response, most int) (*mcp.EventReader, error) {
	if res.Status != http.StatusOK {
		return nil, fmt.Errorf("status %d instead of 200", res.Status)
	}
	if ct := res.Header.Get("Content-Type"); !strings.HasPrefix(strings.ToLower(ct), "text/event-stream") {
		return nil, fmt.Errorf("content type %.60q instead of text/event-stream", ct)
	}
	events := mcp.NewEventReader(res.Body, most)
	for {
		ev, err := events.Next()
		if err != nil {
			return nil, unexpected(err)
		}
		if ev.IsNote || !ev.HasData {
			continue
		}
		if string(ev.Type) != "endpoint" {
			return nil, fmt.Errorf("event %.40q before the endpoint; is this a target of the streamable HTTP transport (mcp)?", ev.Type)
		}
		if p.to, err = e.base.Parse(string(ev.Data)); err != nil {
			return nil, errors.New("the endpoint is no URL")
		}
		// Another origin would get this target's credentials, and could be an address that nobody granted.
		if p.to.Scheme != e.base.Scheme || !strings.EqualFold(p.to.Host, e.base.Host) || p.to.User != nil {
			return nil, fmt.Errorf("the endpoint is at another origin, %.200s://%.200s", p.to.Scheme, p.to.Host)
		}
		p.to.Fragment = ""
		p.line = requestLine(p.to.RequestURI(), e.host)
		return events, nil
	}
}

// listen reads the stream to its end.
func (p *ssePipe) listen(events *mcp.EventReader, body io.Closer) {
	defer close(p.over)
	defer body.Close()
	for {
		ev, err := events.Next()
		if err != nil {
			p.ch.fail(fmt.Errorf("the target's event stream ended: %w", unexpected(err)))
			return
		}
		if ev.IsNote || !ev.HasData || len(ev.Type) > 0 && string(ev.Type) != "message" {
			continue
		}
		p.ch.receive(bytes.Clone(ev.Data))
	}
}

// send posts one message, with the headers and the policies of the request that it is from.
func (p *ssePipe) send(ctx context.Context, msg []byte, r *Request) (*Response, error) {
	ep := p.ep
	h := r.Header.Clone()
	h.Del(sessionHeader)
	h.Set("Content-Type", "application/json")
	if r.via != nil {
		ep = r.via.http
	}
	res, err := ep.send(ctx, &Request{Method: http.MethodPost, Header: h, Body: msg, Call: r.Call, Safe: r.Safe}, p.to, p.line)
	if err != nil {
		return nil, err
	}
	if res.Status < 200 || res.Status > 299 {
		return res, nil
	}
	io.Copy(io.Discard, io.LimitReader(res.Body, 4<<10)) // "Accepted", as a rule; read, so that the connection is kept
	return nil, res.Body.Close()
}

// post says what nobody asked us to: with the headers that opened the stream, and without waiting. A target that pings faster
// than it takes answers lacks some of them.
func (p *ssePipe) post(msg []byte) {
	select {
	case p.posts <- struct{}{}:
	default:
		p.ch.log.Debug("message to the target got lost", "err", "it does not take those before")
		return
	}
	go func() {
		defer func() { <-p.posts }()
		ctx, cancel := context.WithTimeout(context.Background(), endpointTime)
		defer cancel()
		res, err := p.send(ctx, msg, &Request{Header: p.header.Clone(), Call: p.who})
		if err != nil {
			p.ch.sparing().Warn("message to the target got lost", "err", err)
		} else if res != nil {
			res.Body.Close()
		}
	}()
}

func (p *ssePipe) leave() {}

func (p *ssePipe) close(ctx context.Context) {
	p.cancel(ErrClosed)
	select {
	case <-p.over:
	case <-ctx.Done():
	}
}
