package route

import (
	"cmp"
	"fmt"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strings"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Matches are the compiled conditions of one route, of which one must hold.
type Matches []match

type match struct {
	exact   string // of exact, prefix and regex at most one is set
	prefix  string // without a final slash; "/" is no condition
	regex   *regexp.Regexp
	headers []headerMatch
}

type headerMatch struct {
	name  string // canonical
	exact string
	regex *regexp.Regexp // nil: exact
}

// Compile checks and compiles the conditions of a route; none is one that always holds. An error names the field,
// e.g. `matches[1].path.regex`.
func Compile(in []*xdsv1.RouteMatch) (Matches, error) {
	if len(in) == 0 {
		return Matches{{}}, nil
	}
	out := make(Matches, 0, len(in))
	for i, m := range in {
		var c match
		switch path := m.GetPath().(type) {
		case *xdsv1.RouteMatch_Exact:
			if !strings.HasPrefix(path.Exact, "/") {
				return nil, &Error{fmt.Sprintf("matches[%d].path.exact", i), fmt.Sprintf("path %q must begin with /", path.Exact)}
			}
			c.exact = path.Exact
		case *xdsv1.RouteMatch_PathPrefix:
			if !strings.HasPrefix(path.PathPrefix, "/") {
				return nil, &Error{fmt.Sprintf("matches[%d].path.pathPrefix", i), fmt.Sprintf("path %q must begin with /", path.PathPrefix)}
			}
			c.prefix = strings.TrimRight(path.PathPrefix, "/")
		case *xdsv1.RouteMatch_Regex:
			re, err := anchored(path.Regex)
			if err != nil {
				return nil, &Error{fmt.Sprintf("matches[%d].path.regex", i), err.Error()}
			}
			c.regex = re
		}
		for j, h := range m.GetHeaders() {
			hm := headerMatch{name: textproto.CanonicalMIMEHeaderKey(h.GetName()), exact: h.GetExact()}
			if h.GetName() == "" {
				return nil, &Error{fmt.Sprintf("matches[%d].headers[%d].name", i, j), "a header needs a name"}
			}
			if v, ok := h.GetValue().(*xdsv1.HeaderMatch_Regex); ok {
				re, err := anchored(v.Regex)
				if err != nil {
					return nil, &Error{fmt.Sprintf("matches[%d].headers[%d].value.regex", i, j), err.Error()}
				}
				hm.regex = re
			}
			c.headers = append(c.headers, hm)
		}
		out = append(out, c)
	}
	return out, nil
}

// Path is the part of a path that is the route's own: what its exact path or its longest prefix says, or all of it where
// neither is what the path matches.
func (m Matches) Path(path string) string {
	longest := ""
	for i := range m {
		switch c := &m[i]; {
		case c.exact != "" && c.exact == path:
			return path
		case c.prefix != "" && len(c.prefix) > len(longest) && strings.HasPrefix(path, c.prefix) && (len(path) == len(c.prefix) || path[len(c.prefix)] == '/'):
			longest = c.prefix
		}
	}
	if longest == "" {
		return path
	}
	return longest
}

// Own is the path of the first condition that names one, exactly or as a prefix; "" if none does.
func (m Matches) Own() string {
	for i := range m {
		if own := cmp.Or(m[i].exact, m[i].prefix); own != "" {
			return own
		}
	}
	return ""
}

// Takes reports whether a path meets one of the conditions, whatever the request's headers.
func (m Matches) Takes(path string) bool {
	return slices.ContainsFunc(m, func(c match) bool {
		switch {
		case c.exact != "":
			return c.exact == path
		case c.prefix != "":
			return path == c.prefix || strings.HasPrefix(path, c.prefix+"/")
		case c.regex != nil:
			return c.regex.MatchString(path)
		}
		return true
	})
}

// anchored makes an expression match a whole value: `/v[12]` is not meant to match `/evil/v1/x`.
func anchored(expr string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expr); err != nil { // before it is wrapped, so that the error shows what was written
		return nil, err
	}
	return regexp.Compile(`^(?:` + expr + `)$`)
}

// Error is a condition that does not compile.
type Error struct{ Field, Reason string }

func (e *Error) Error() string { return e.Field + ": " + e.Reason }

// Rule leads requests for Host that meet one of Matches to Value.
type Rule[V any] struct {
	// Host is a pattern as in [Hosts].
	Host    string
	Matches Matches
	Value   V
}

// Table finds the value of the best rule. The zero value has none.
type Table[V any] struct {
	hosts Hosts[*paths[V]]
}

// paths are the rules of one host pattern. Exact paths are looked up; prefixes are looked up segment by segment
// from the longest, so that the cost grows with the path and not with the number of rules.
type paths[V any] struct {
	exact    map[string][]entry[V]
	prefixes map[string][]entry[V]
	regexes  []entry[V]
	rest     []entry[V]
}

type entry[V any] struct {
	match
	value V
}

// NewTable builds a table of rules.
func NewTable[V any](rules []Rule[V]) Table[V] {
	hosts := map[string]*paths[V]{}
	for _, r := range rules {
		p := hosts[r.Host]
		if p == nil {
			p = &paths[V]{exact: map[string][]entry[V]{}, prefixes: map[string][]entry[V]{}}
			hosts[r.Host] = p
		}
		for _, m := range r.Matches {
			e := entry[V]{m, r.Value}
			switch {
			case m.exact != "":
				p.exact[m.exact] = append(p.exact[m.exact], e)
			case m.prefix != "":
				p.prefixes[m.prefix] = append(p.prefixes[m.prefix], e)
			case m.regex != nil:
				p.regexes = append(p.regexes, e)
			default:
				p.rest = append(p.rest, e)
			}
		}
	}
	byHeaders := func(a, b entry[V]) int { return cmp.Compare(len(b.headers), len(a.headers)) }
	for _, p := range hosts {
		for _, entries := range p.exact {
			slices.SortStableFunc(entries, byHeaders)
		}
		for _, entries := range p.prefixes {
			slices.SortStableFunc(entries, byHeaders)
		}
		slices.SortStableFunc(p.regexes, func(a, b entry[V]) int {
			return cmp.Or(cmp.Compare(len(b.regex.String()), len(a.regex.String())), byHeaders(a, b))
		})
		slices.SortStableFunc(p.rest, byHeaders)
	}
	return Table[V]{NewHosts(hosts)}
}

// Match returns the value of the best rule for a request. name is as [Hostname] makes it.
func (t *Table[V]) Match(name, path string, header http.Header) (V, bool) {
	for p := range t.hosts.Match(name) {
		if v, ok := p.match(path, header); ok {
			return v, true
		}
	}
	var none V
	return none, false
}

func (p *paths[V]) match(path string, header http.Header) (V, bool) {
	if v, ok := first(p.exact[path], path, header); ok {
		return v, true
	}
	for prefix := path; len(p.prefixes) > 0 && prefix != ""; {
		if v, ok := first(p.prefixes[prefix], path, header); ok {
			return v, true
		}
		prefix = prefix[:max(strings.LastIndexByte(prefix, '/'), 0)]
	}
	if v, ok := first(p.regexes, path, header); ok {
		return v, true
	}
	return first(p.rest, path, header)
}

// first returns the first entry whose own conditions hold; that its place in the table matches is known.
func first[V any](entries []entry[V], path string, header http.Header) (V, bool) {
	for i := range entries {
		e := &entries[i]
		if (e.regex == nil || e.regex.MatchString(path)) && e.headersMatch(header) {
			return e.value, true
		}
	}
	var none V
	return none, false
}

func (m *match) headersMatch(header http.Header) bool {
	for i := range m.headers {
		h := &m.headers[i]
		values, ok := header[h.name]
		if !ok {
			return false
		}
		value := values[0]
		if len(values) > 1 {
			value = strings.Join(values, ",") // several lines of one header are one value (RFC 9110 §5.3)
		}
		if h.regex != nil && !h.regex.MatchString(value) || h.regex == nil && value != h.exact {
			return false
		}
	}
	return true
}
