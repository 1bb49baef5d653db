package newclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// direct is a target of 2026-07-28 itself, whose transport has no headers: those that repeat arguments are checked here, for
// nobody behind sees them (2026-07-28, transports: servers that get a header that disagrees must refuse the request).
type direct struct {
	upstream.Transport
	b         *Bridge
	t         *snapshot.Target
	principal string
}

// Direct reaches a target that speaks 2026-07-28 itself.
func (b *Bridge) Direct(t *snapshot.Target, c Caller) upstream.Transport {
	tr := b.cfg.Transport(t)
	if t.Config.GetMcp() != nil {
		return tr
	}
	return &direct{Transport: tr, b: b, t: t, principal: c.Scope.Principal}
}

// Do checks the headers of a call, and passes all else on.
func (d *direct) Do(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	if r.Method != http.MethodPost || r.Call.Method != "tools/call" {
		return d.Transport.Do(ctx, r)
	}
	m, err := mcp.Scan(r.Body, d.b.cfg.Limits)
	if err != nil {
		return refused(err), nil
	}
	if wrong := d.check(ctx, r, &m); wrong != nil {
		wrong.ID = m.RawID()
		return refused(wrong), nil
	}
	return d.Transport.Do(ctx, r)
}

// check reads the tools anew before it refuses anything: the target may have changed them.
func (d *direct) check(ctx context.Context, r *upstream.Request, m *mcp.Message) *mcp.Error {
	key := toolsKey{d.t.Digest, d.principal, sha256.Sum256(m.Meta.ClientCapabilities.Of(m.Body))}
	tenant := d.t.Tenant.Name
	verdict := func(known *mcp.ToolParams) error {
		return known.Of(m.Name.String()).Check(r.Header, m.Arguments.Of(m.Body))
	}
	if known := d.b.knownTools(tenant, key); known != nil && verdict(known) == nil {
		return nil
	}
	known, err := d.list(ctx, r, m)
	if err == nil {
		d.b.learn(tenant, key, known)
		err = verdict(known)
	} else if !sendsParams(r.Header) {
		return nil // nothing was sent that could be wrong; the call itself will tell what is
	}
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*mcp.Error](err); ok {
		return wrong
	}
	return &mcp.Error{Status: http.StatusBadGateway, Code: mcp.CodeInternal,
		Message: fmt.Sprintf("target %q does not list its tools, so that the headers of the arguments cannot be checked", d.t.Name)}
}

// list reads all tools, in the name of who calls one.
func (d *direct) list(ctx context.Context, r *upstream.Request, m *mcp.Message) (*mcp.ToolParams, error) {
	found := &mcp.ToolParams{}
	cursor := ""
	for range maxPages {
		params := append([]byte(`{"_meta":`), m.Meta.Span.Of(m.Body)...)
		if cursor != "" {
			params = mcp.AppendString(append(params, `,"cursor":`...), cursor)
		}
		own := *r
		own.Safe, own.Call.Method = true, "tools/list"
		own.Header = r.Header.Clone()
		mcp.SetHeaders(own.Header, mcp.V20260728, "tools/list", "")
		own.Body = mcp.AppendRequest(nil, []byte(`"sluice-tools"`), "tools/list", append(params, '}'))
		msg, err := d.ask(ctx, &own)
		if err != nil {
			return nil, err
		}
		if msg.Error.Present() {
			break
		}
		page, err := found.Add(msg.Result.Of(msg.Body), d.b.cfg.Limits)
		if errors.Is(err, mcp.ErrLongList) {
			return nil, unchecked(d.t.Name)
		}
		if err != nil || !page.NextCursor.IsString() {
			break
		}
		cursor = page.NextCursor.String()
	}
	return found, nil
}

// ask sends a request of our own, and reads the response.
func (d *direct) ask(ctx context.Context, r *upstream.Request) (*mcp.Message, error) {
	resp, err := d.Transport.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if mcp.MediaType(resp.Header) != mcp.TypeStream {
		raw, err := io.ReadAll(io.LimitReader(resp.Body, int64(d.b.cfg.Limits.MaxBytes())+1))
		if err != nil {
			return nil, err
		}
		msg, err := mcp.Scan(raw, d.b.cfg.Limits)
		return &msg, err
	}
	events := mcp.NewEventReader(resp.Body, d.b.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return nil, err
		}
		msg, err := mcp.Scan(bytes.Clone(ev.Data), d.b.cfg.Limits)
		if err == nil && msg.Kind == mcp.Response {
			return &msg, nil
		}
	}
}
