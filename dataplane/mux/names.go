package mux

import (
	"strings"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Separators that no target's name holds, so that the first one in a name is ours, whatever follows.
const (
	nameSeparator = "_"
	uriSeparator  = "+"
)

func joinName(target, name string) string { return target + nameSeparator + name }
func joinURI(target, uri string) string   { return target + uriSeparator + uri }

func splitName(name string) (target, own string, ok bool) { return strings.Cut(name, nameSeparator) }
func splitURI(uri string) (target, own string, ok bool)   { return strings.Cut(uri, uriSeparator) }

// prefixes reports whether a backend's names carry their target's name for a client that comes now.
func prefixes(b *snapshot.Backend) bool {
	switch b.Prefix {
	case xdsv1.Backend_PREFIX_MODE_ALWAYS:
		return true
	case xdsv1.Backend_PREFIX_MODE_NEVER:
		return false
	default:
		return len(b.Targets) > 1
	}
}

// prefixed is prefixes, or what it was when the session began: names must not change under a client.
func (x *Request) prefixed() bool {
	if x.Session != nil {
		return x.Session.Prefixed
	}
	return prefixes(x.Backend)
}

// wraps reports whether a target shares the endpoint with others, in this client's eyes: then its URIs carry its name,
// and ids it gives out are sealed with it. The one target that a session began with never does, so that nothing which
// its client holds changes when another target joins.
func (x *Request) wraps(t *snapshot.Target) bool {
	if x.Session == nil {
		return len(x.Backend.Targets) > 1
	}
	return x.Session.Several || len(x.Session.Targets) == 0 || x.Session.Targets[0].Name != t.Name
}

// alone returns the target that everything goes to, nil if there are several to choose from.
func (x *Request) alone() *snapshot.Target {
	if len(x.Backend.Targets) == 1 && !x.wraps(x.Backend.Targets[0]) {
		return x.Backend.Targets[0]
	}
	return nil
}

// clientName is a target's own name of a tool or prompt as this client sees it.
func (x *Request) clientName(t *snapshot.Target, name string) string {
	if x.prefixed() {
		return joinName(t.Name, name)
	}
	return name
}

// clientURI is a target's own URI as this client sees it.
func (x *Request) clientURI(t *snapshot.Target, uri string) string {
	if x.wraps(t) {
		return joinURI(t.Name, uri)
	}
	return uri
}

// byURI finds the target of a URI or URI template, and the target's own form of it; nil if there is none.
func (x *Request) byURI(uri string) (*snapshot.Target, string) {
	if name, own, ok := splitURI(uri); ok {
		if t := x.target(name); t != nil && x.wraps(t) {
			return t, own
		}
	}
	for _, t := range x.Backend.Targets {
		if !x.wraps(t) {
			return t, uri
		}
	}
	return nil, ""
}

// byPrefix finds the target of a prefixed name, and its own name; nil if there is none.
func (x *Request) byPrefix(name string) (*snapshot.Target, string) {
	target, own, ok := splitName(name)
	if !ok {
		return nil, ""
	}
	return x.target(target), own
}

func (x *Request) target(name string) *snapshot.Target {
	for _, t := range x.Backend.Targets {
		if t.Name == name {
			return t
		}
	}
	return nil
}
