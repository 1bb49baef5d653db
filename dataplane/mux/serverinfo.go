package mux

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// serverSays is what a target says of itself in initialize or server/discover.
type serverSays struct {
	capabilities map[string]json.RawMessage
	instructions string
	page         mcp.Page // its cache hints
}

func parseServer(result []byte) (serverSays, error) {
	var says serverSays
	err := mcp.Members(result, mcp.Limits{}, []string{"capabilities", "instructions", "ttlMs", "cacheScope"}, func(name, value []byte) error {
		switch string(name) {
		case "capabilities":
			return json.Unmarshal(value, &says.capabilities)
		case "instructions":
			return json.Unmarshal(value, &says.instructions)
		}
		return nil
	})
	if err == nil {
		says.page, err = mcp.ReadList(mcp.Tools, result, mcp.Limits{}, func(*mcp.Item) error { return nil })
	}
	return says, err
}

// protocolVersion is the one thing of an initialize result that every session needs.
func protocolVersion(result []byte) (v mcp.Revision, err error) {
	err = mcp.Members(result, mcp.Limits{}, []string{"protocolVersion"}, func(name, value []byte) error {
		if string(name) == "protocolVersion" {
			text, _ := mcp.Unquote(value)
			v = mcp.Revision(text)
		}
		return nil
	})
	return v, err
}

// serverMerge makes one server of several.
type serverMerge struct {
	capabilities map[string]any
	instructions strings.Builder
	hints        *mcp.Merge
}

func newServerMerge() *serverMerge {
	return &serverMerge{capabilities: map[string]any{}, hints: mcp.NewMerge(mcp.Tools, mcp.Limits{})}
}

// add takes one target into account. The union of capabilities is promised, extensions among them whether they are known or
// not, since each is some target's.
func (m *serverMerge) add(target string, s serverSays) {
	for name, raw := range s.capabilities {
		var value any
		if json.Unmarshal(raw, &value) != nil {
			continue
		}
		m.capabilities[name] = union(m.capabilities[name], value)
	}
	if s.instructions != "" {
		fmt.Fprintf(&m.instructions, "## %s\n\n%s\n\n", target, strings.TrimSpace(s.instructions))
	}
	m.hints.Hint(s.page)
}

// union of two capabilities: an object has the members of both, a flag is set if one is, a list has what either has. Else, and
// where they are of two sorts, the first stands.
func union(a, b any) any {
	switch a := a.(type) {
	case nil:
		return b
	case bool:
		other, ok := b.(bool)
		return a || ok && other
	case []any:
		more, _ := b.([]any)
		for _, e := range more {
			if !slices.ContainsFunc(a, func(have any) bool { return reflect.DeepEqual(have, e) }) {
				a = append(a, e)
			}
		}
		return a
	case map[string]any:
		more, ok := b.(map[string]any)
		if !ok {
			return a
		}
		for name, value := range more {
			a[name] = union(a[name], value)
		}
	}
	return a
}

var ownInfo = map[string]any{"name": "sluice", "version": "1"}

func (m *serverMerge) initializeResult(version string, missing missing) []byte {
	out := map[string]any{"protocolVersion": version, "capabilities": m.capabilities, "serverInfo": ownInfo}
	if text := strings.TrimSpace(m.instructions.String()); text != "" {
		out["instructions"] = text
	}
	if meta := missing.meta(); meta != nil {
		out["_meta"] = json.RawMessage(meta)
	}
	return marshal(out)
}

// marshal is for values made of strings, flags, maps and what was JSON before, which always marshal.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// missing are targets that a merged answer does without.
type missing struct {
	names   []string
	reasons []string
}

// metaMissing marks in _meta what a merged answer lacks.
const metaMissing = "sluice/missing"

func (m *missing) add(t *snapshot.Target, err error) {
	m.names = append(m.names, t.Name)
	m.reasons = append(m.reasons, reason(err))
}

// refuse returns the error to answer with, unless what is missing may be missing. The first target's is told.
func (m *missing) refuse(x *Request, asked int, errs []error) error {
	if len(m.names) == 0 || failsOpen(x.Backend) && len(m.names) < asked {
		return nil
	}
	for _, err := range errs {
		if err == nil {
			continue
		}
		err = x.readdress(err)
		if e := (*mcp.Error)(nil); errors.As(err, &e) && len(m.names) > 1 {
			e.Message += fmt.Sprintf(" (and %d more targets)", len(m.names)-1)
		}
		return err
	}
	return x.fail(http.StatusBadGateway, mcp.CodeInternal, "no target answered")
}

// meta is the raw _meta that names them; nil if nothing is missing.
func (m *missing) meta() []byte {
	if len(m.names) == 0 {
		return nil
	}
	list := make([]map[string]string, len(m.names))
	for i, name := range m.names {
		list[i] = map[string]string{"target": name, "reason": m.reasons[i]}
	}
	return marshal(map[string]any{metaMissing: list})
}

func reason(err error) string {
	if e, ok := err.(interface{ Unwrap() error }); ok && e.Unwrap() != nil {
		err = e.Unwrap()
	}
	if e := (*mcp.Error)(nil); errors.As(err, &e) {
		return e.Message
	}
	return "it did not answer"
}
