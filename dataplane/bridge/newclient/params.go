package newclient

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// tools remembers which arguments of a target's tools stand in Mcp-Param-* headers: nobody behind the bridge checks them.
// The zero value is ready.
type tools struct {
	mu    sync.Mutex
	known map[toolsKey]*toolHeaders // guarded by mu
	size  int                       // guarded by mu; of all that are known
}

// toolsKey: servers list by who asks and what the client can do.
type toolsKey struct {
	digest, principal string
	caps              [sha256.Size]byte
}

// toolHeaders are those of one list. It is not changed once it is known.
type toolHeaders struct {
	byName map[string]mcp.ParamHeaders // without tools that have none
	size   int                         // about as many bytes
	seen   time.Time
}

const (
	// toolsAge is how long a list is believed where nothing says that it changed.
	toolsAge = time.Minute
	// maxTools bounds the lists that are remembered, and maxToolsSize what they take, in bytes; maxListSize what one may.
	maxTools     = 4096
	maxToolsSize = 64 << 20
	maxListSize  = 4 << 20
	// maxPages of one list; a server that always has a next page is cut off there.
	maxPages = 64
)

func (t *tools) get(k toolsKey) *toolHeaders {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.known[k]; h != nil && time.Since(h.seen) < toolsAge {
		return h
	}
	return nil
}

func (t *tools) put(k toolsKey, h *toolHeaders) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(k)
	if t.known == nil || len(t.known) >= maxTools || t.size+h.size > maxToolsSize {
		t.known, t.size = map[toolsKey]*toolHeaders{}, 0 // they are found anew
	}
	t.known[k] = h
	t.size += h.size
}

func (t *tools) dropLocked(k toolsKey) {
	if h := t.known[k]; h != nil {
		t.size -= h.size
		delete(t.known, k)
	}
}

// forget drops the lists of a target that says that they changed.
func (t *tools) forget(digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.known {
		if k.digest == digest {
			t.dropLocked(k)
		}
	}
}

func (t *tools) retain(used map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.known {
		if !used[k.digest] {
			t.dropLocked(k)
		}
	}
}

// checkParams compares the Mcp-Param-* headers of a call with its arguments: an [*mcp.Error] if they disagree. It reads the
// tools anew before it refuses anything: the target may have changed them.
func (s *peer) checkParams(ctx context.Context, h http.Header, m *mcp.Message) error {
	k := s.toolsKey()
	verdict := func(known *toolHeaders) error {
		return known.byName[m.Name.String()].Check(h, m.Arguments.Of(m.Body))
	}
	if known := s.b.tools.get(k); known != nil && verdict(known) == nil {
		return nil
	}
	known, err := s.listTools(ctx)
	if err != nil {
		if !sendsParams(h) {
			return nil // nothing was sent that could be wrong; the call itself will tell what is
		}
		return err
	}
	s.b.tools.put(k, known)
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
func (s *peer) listTools(ctx context.Context) (*toolHeaders, error) {
	found := &toolHeaders{byName: map[string]mcp.ParamHeaders{}, seen: time.Now()}
	params := []byte("{}")
	for range maxPages {
		msg, err := s.ask(ctx, "tools/list", params)
		if err != nil {
			return nil, err
		}
		if msg.Error.Present() {
			break
		}
		page, err := found.add(msg.Result.Of(msg.Body), s.b.cfg.Limits)
		if errors.Is(err, errLongList) {
			return nil, unchecked(s.t.Name)
		}
		if err != nil || !page.NextCursor.IsString() {
			break
		}
		params = append(mcp.AppendString([]byte(`{"cursor":`), page.NextCursor.String()), '}')
	}
	return found, nil
}

// errLongList: more would have to be remembered of one list than is.
var errLongList = errors.New("the list is too long")

// unchecked refuses headers that cannot be checked for the length of the target's list.
func unchecked(target string) *mcp.Error {
	return &mcp.Error{Status: http.StatusBadGateway, Code: mcp.CodeInternal,
		Message: fmt.Sprintf("target %q has more than %d bytes of tools with headers for their arguments, so that these cannot be checked", target, maxListSize)}
}

// add reads one page.
func (h *toolHeaders) add(result []byte, lim mcp.Limits) (mcp.Page, error) {
	return mcp.ReadList(mcp.Tools, result, lim, func(it *mcp.Item) error {
		// A bad annotation makes clients hide the tool: nothing of it is checked.
		if p, err := mcp.ParseParamHeaders(it.InputSchema.Of(it.Raw)); err == nil && len(p) > 0 {
			if h.size += len(it.Raw); h.size > maxListSize {
				return errLongList
			}
			h.byName[it.Name.String()] = p
		}
		return nil
	})
}

// learnTools reads a list that a client asked for, if it is a whole one.
func (s *peer) learnTools(m *mcp.Message) {
	found := &toolHeaders{byName: map[string]mcp.ParamHeaders{}, seen: time.Now()}
	page, err := found.add(m.Result.Of(m.Body), s.b.cfg.Limits)
	if err == nil && !page.NextCursor.IsString() {
		s.b.tools.put(s.toolsKey(), found)
	}
}

func (s *peer) toolsKey() toolsKey {
	return toolsKey{s.key.digest, string(s.key.whose[:]), s.key.caps}
}
