package newclient

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// toolsKey: servers list by who asks and what the client can do.
type toolsKey struct {
	digest, principal string
	caps              [sha256.Size]byte
}

const (
	// toolsAge is how long a list is believed where nothing says that it changed.
	toolsAge = time.Minute
	// maxTools bounds what is remembered of all lists, in bytes.
	maxTools = 32 << 20
	// maxPages of one list; a server that always has a next page is cut off there.
	maxPages = 64
)

// knownTools are a list's headers, if it was seen of late: nobody behind the bridge checks them.
func (b *Bridge) knownTools(tenant string, k toolsKey) *mcp.ToolParams {
	known, _ := b.tools.Get(tenant, k)
	return known
}

func (b *Bridge) learn(tenant string, k toolsKey, known *mcp.ToolParams) {
	b.tools.Put(tenant, k, known, len(k.digest)+len(k.principal)+known.Size(), time.Now().Add(toolsAge))
}

// forgetTools drops the lists of a target that says that they changed.
func (b *Bridge) forgetTools(digest string) {
	b.tools.DropAll(func(k toolsKey) bool { return k.digest == digest })
}

// checkParams compares the Mcp-Param-* headers of a call with its arguments: an [*mcp.Error] if they disagree. It reads the
// tools anew before it refuses anything: the target may have changed them.
func (s *peer) checkParams(ctx context.Context, h http.Header, m *mcp.Message) error {
	k := s.toolsKey()
	tenant := s.t.Tenant.Name
	verdict := func(known *mcp.ToolParams) error {
		return known.Of(m.Name.String()).Check(h, m.Arguments.Of(m.Body))
	}
	if known := s.b.knownTools(tenant, k); known != nil && verdict(known) == nil {
		return nil
	}
	known, err := s.listTools(ctx)
	if err != nil {
		if !sendsParams(h) {
			return nil // nothing was sent that could be wrong; the call itself will tell what is
		}
		return err
	}
	s.b.learn(tenant, k, known)
	return verdict(known)
}

// sendsParams reports whether a header repeats an argument.
func sendsParams(h http.Header) bool {
	for name := range h {
		if strings.HasPrefix(name, mcp.HeaderParam) {
			return true
		}
	}
	return false
}

// listTools reads all tools. A target without tools, or that refuses to list them, has none with headers.
func (s *peer) listTools(ctx context.Context) (*mcp.ToolParams, error) {
	found := &mcp.ToolParams{}
	params := []byte("{}")
	for range maxPages {
		msg, err := s.ask(ctx, "tools/list", params)
		if err != nil {
			return nil, err
		}
		if msg.Error.Present() {
			break
		}
		page, err := found.Add(msg.Result.Of(msg.Body), s.b.cfg.Limits)
		if errors.Is(err, mcp.ErrLongList) {
			return nil, unchecked(s.t.Name)
		}
		if err != nil || !page.NextCursor.IsString() {
			break
		}
		params = append(mcp.AppendString([]byte(`{"cursor":`), page.NextCursor.String()), '}')
	}
	return found, nil
}

// unchecked refuses headers that cannot be checked for the length of the target's list.
func unchecked(target string) *mcp.Error {
	return &mcp.Error{Status: http.StatusBadGateway, Code: mcp.CodeInternal,
		Message: fmt.Sprintf("the headers of target %q cannot be checked: %v", target, mcp.ErrLongList)}
}

// learnTools reads a list that a client asked for, if it is a whole one.
func (s *peer) learnTools(m *mcp.Message) {
	found := &mcp.ToolParams{}
	page, err := found.Add(m.Result.Of(m.Body), s.b.cfg.Limits)
	if err == nil && !page.NextCursor.IsString() {
		s.b.learn(s.t.Tenant.Name, s.toolsKey(), found)
	}
}

func (s *peer) toolsKey() toolsKey {
	return toolsKey{s.key.digest, string(s.key.whose[:]), s.key.caps}
}
