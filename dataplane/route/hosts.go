// Package route is the match table of requests: host, path and headers lead to a value. It is pure; a table is
// immutable and safe for concurrent use. The order of precedence is fixed, whatever order rules are given in:
// exact host before wildcard (longest first) before none; exact path before prefix (longest first) before
// regular expression (longest first) before none; more headers before fewer; then as given.
package route

import (
	"iter"
	"strings"
)

// Hosts maps host patterns to values: `a.example.com`, `*.example.com` (any name below, at any depth, but not
// example.com) and the empty string for any name. The zero value is empty.
type Hosts[V any] struct {
	exact    map[string]V
	wildcard map[string]V // by suffix with its dot: `.example.com`
	any      *V
}

// NewHosts takes patterns in lower case.
func NewHosts[V any](patterns map[string]V) Hosts[V] {
	var h Hosts[V]
	for pattern, v := range patterns {
		switch {
		case pattern == "" || pattern == "*":
			h.any = &v
		case strings.HasPrefix(pattern, "*."):
			if h.wildcard == nil {
				h.wildcard = map[string]V{}
			}
			h.wildcard[pattern[1:]] = v
		default:
			if h.exact == nil {
				h.exact = map[string]V{}
			}
			h.exact[pattern] = v
		}
	}
	return h
}

// Match iterates over the values of the patterns that match name, the best first. name is as [Hostname] makes it.
func (h *Hosts[V]) Match(name string) iter.Seq[V] {
	return func(yield func(V) bool) {
		if h.exact != nil {
			if v, ok := h.exact[name]; ok && !yield(v) {
				return
			}
		}
		if h.wildcard != nil {
			for i := 1; i < len(name); i++ { // from the longest suffix; at least one byte before the dot
				if name[i] != '.' {
					continue
				}
				if v, ok := h.wildcard[name[i:]]; ok && !yield(v) {
					return
				}
			}
		}
		if h.any != nil {
			yield(*h.any)
		}
	}
}

// Hostname is the name in a Host header or server name: without port, brackets and final dot, in lower case.
func Hostname(host string) string {
	if strings.HasPrefix(host, "[") {
		if end := strings.IndexByte(host, ']'); end > 0 {
			host = host[1:end]
		}
	} else if colon := strings.LastIndexByte(host, ':'); colon >= 0 && strings.IndexByte(host, ':') == colon {
		host = host[:colon]
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")) // ToLower returns its argument when there is nothing to do
}

// Names reports whether a pattern matches a name, which is as [Hostname] makes it.
func Names(pattern, name string) bool {
	return pattern == "" || pattern == "*" || pattern == name || covers(pattern, name)
}

// Intersect is the pattern for the names that both patterns match, false if there are none.
func Intersect(a, b string) (string, bool) {
	switch {
	case b == "" || b == "*" || a == b:
		return a, true
	case a == "" || a == "*":
		return b, true
	case covers(a, b):
		return b, true
	case covers(b, a):
		return a, true
	}
	return "", false
}

// covers tells whether every name that pattern matches is matched by wild, a wildcard.
func covers(wild, pattern string) bool {
	suffix, ok := strings.CutPrefix(wild, "*.")
	return ok && strings.HasSuffix(pattern, "."+suffix)
}
