package mux

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

const (
	maxDocument  = 256 << 10
	documentTime = 10 * time.Second // for all that is asked on the way to one
	documentAge  = time.Minute      // unless the target refuses somebody before
)

// ResourceMetadata is the document about the protected resource (RFC 9728 section 3.2) that t is, as clients reach it through the
// transparent route of x, by path. It is the target's own, byte for byte, but for `resource`, and `signed_metadata`, which would
// contradict it. A `resource` that is not the target's is left for clients to refuse, as they would without a proxy. An error
// can be answered.
func (m *Mux) ResourceMetadata(x *Request, t *snapshot.Target, path string) ([]byte, error) {
	x.mux = m
	x.Record.Target = t.Name
	if t.Refused != nil {
		return nil, x.refusedConfig(t)
	}
	document, ok := m.documents.Get(t.Tenant.Name, t.Digest)
	if !ok {
		v, err, _ := m.flights.Do("resource\x00"+t.Tenant.Name+"\x00"+t.Digest, func() (any, error) {
			ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(x.HTTP.Context()), documentTime, upstream.ErrTimeout)
			defer cancel()
			document, err := x.findDocument(ctx, t)
			if err == nil {
				m.documents.Put(t.Tenant.Name, t.Digest, document, len(t.Digest)+cap(document), time.Now().Add(documentAge))
			}
			return document, err
		})
		if err != nil {
			return nil, x.readdress(err)
		}
		document = v.([]byte)
	}
	return moveResource(document, upstream.URL(t), t.Policy.TransparentResource(x.HTTP, path))
}

// findDocument asks the target: where its last challenge named, and where the RFC has it. A target that has challenged nobody
// yet is made to, by what a client without a token would send.
func (x *Request) findDocument(ctx context.Context, t *snapshot.Target) ([]byte, error) {
	named, ok := x.mux.named.Get(t.Tenant.Name, t.Digest)
	if !ok {
		resp, err := x.askDiscover(ctx, t)
		if err != nil {
			return nil, err
		}
		_ = resp.Body.Close()
		if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
			named, ok = x.hearChallenge(t, resp.Header.Values("Www-Authenticate"))
		}
	}
	paths := []string{policy.WellKnownResource + strings.TrimSuffix(upstream.URL(t).EscapedPath(), "/"), policy.WellKnownResource}
	if ok {
		paths = slices.Insert(paths, 0, named)
	}
	var tried strings.Builder
	for i, path := range paths {
		if slices.Contains(paths[:i], path) {
			continue
		}
		document, why, err := x.readDocument(ctx, t, path)
		if document != nil || err != nil {
			return document, err
		}
		if tried.Len() > 0 {
			tried.WriteString(", ")
		}
		fmt.Fprintf(&tried, "%.200s (%s)", path, why)
	}
	return nil, x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q shows no metadata of a protected resource (RFC 9728), which clients need to get a token for it; asked for %s", t.Name, tried.String())
}

// readDocument returns one that is, or why there is none.
func (x *Request) readDocument(ctx context.Context, t *snapshot.Target, path string) (document []byte, why string, err error) {
	resp, err := x.exchange(ctx, t, x.mux.cfg.Transport(t), &upstream.Request{
		Method: http.MethodGet, Path: path, Header: http.Header{"Accept": {mcp.TypeJSON}}, Call: x.call(t, policy.None, ""),
	}, session.Target{})
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.Status != http.StatusOK {
		return nil, fmt.Sprintf("%d", resp.Status), nil
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, "", x.unreachable(t, err)
	case len(raw) > maxDocument:
		return nil, fmt.Sprintf("more than %d bytes", maxDocument), nil
	}
	if err := mcp.Members(raw, mcp.Limits{Bytes: maxDocument}, resourceMembers, func(_, _ []byte) error { return nil }); err != nil {
		return nil, "no JSON object", nil
	}
	return raw, "", nil
}

var resourceMembers = []string{"resource", "signed_metadata"}

// moveResource makes the document about a resource at `at` the one about own.
func moveResource(document []byte, at *url.URL, own string) ([]byte, error) {
	var e mcp.Edits
	whole := mcp.Span{Start: int32(strings.IndexByte(string(document), '{')), End: int32(len(document))}
	err := mcp.MemberSpans(document, whole, resourceMembers, func(name []byte, value mcp.Span) error {
		if text, ok := mcp.Unquote(value.Of(document)); ok && string(name) == "resource" && identifies(string(text), at) {
			e.String(value, []byte(own))
		}
		return nil
	})
	if err == nil {
		err = e.RemoveMembers(document, whole, func(name []byte) bool { return string(name) == "signed_metadata" })
	}
	if err != nil {
		return nil, err
	}
	return e.Apply(nil, document), nil
}

// identifies reports whether a resource identifier is that of the server at a URL: its own, or of a part of its origin that it
// stands in, which clients of it accept.
func identifies(resource string, at *url.URL) bool {
	u, err := url.Parse(resource)
	if err != nil || u.RawQuery != "" || u.Fragment != "" || !sameOrigin(u, at) {
		return false
	}
	part := strings.TrimSuffix(u.EscapedPath(), "/")
	return strings.HasPrefix(at.EscapedPath()+"/", part+"/")
}
