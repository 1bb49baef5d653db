package mcp

import "slices"

// Era says which of the two families of the protocol a request belongs to.
type Era uint8

// The eras.
const (
	NoEra     Era = iota
	Sessions      // 2024-11-05 to 2025-11-25: initialize, then a session
	Stateless     // since 2026-07-28: every request stands alone
)

// String is the era's name in lower case.
func (e Era) String() string {
	switch e {
	case Sessions:
		return "sessions"
	case Stateless:
		return "stateless"
	default:
		return "none"
	}
}

// A Revision of the protocol, written as on the wire. The zero value is no revision. Revisions compare as
// strings do: later ones are greater.
type Revision string

// The revisions.
const (
	V20241105 Revision = "2024-11-05"
	V20250326 Revision = "2025-03-26"
	V20250618 Revision = "2025-06-18"
	V20251125 Revision = "2025-11-25"
	V20260728 Revision = "2026-07-28"
)

var revisions = []Revision{V20241105, V20250326, V20250618, V20251125, V20260728}

// Revisions returns all that are known, oldest first.
func Revisions() []Revision { return slices.Clone(revisions) }

// Known reports whether r is a revision that this package knows.
func (r Revision) Known() bool { return slices.Contains(revisions, r) }

// Era is the era that r belongs to; [NoEra] if r is not known.
func (r Revision) Era() Era {
	switch {
	case !r.Known():
		return NoEra
	case r >= V20260728:
		return Stateless
	default:
		return Sessions
	}
}

// HasSessions reports whether r has initialize, Mcp-Session-Id, the standing stream and DELETE.
func (r Revision) HasSessions() bool { return r.Era() == Sessions }

// AllowsBatch reports whether a body may be an array.
func (r Revision) AllowsBatch() bool { return r == V20250326 }

// SendsVersionHeader reports whether clients name the revision in MCP-Protocol-Version on every request.
func (r Revision) SendsVersionHeader() bool { return r >= V20250618 && r.Known() }

// HasResultType reports whether results carry resultType, and lists ttlMs and cacheScope.
func (r Revision) HasResultType() bool { return r.Era() == Stateless }

// HasServerRequests reports whether servers send requests of their own (sampling, elicitation, roots) as
// JSON-RPC requests on a stream.
func (r Revision) HasServerRequests() bool { return r.Era() == Sessions }

// CancelsOnDisconnect reports whether a client that hangs up thereby cancels its request.
func (r Revision) CancelsOnDisconnect() bool { return r.Era() == Stateless }

// ResourceNotFound is the code of r for a resource that does not exist.
func (r Revision) ResourceNotFound() int {
	if r.Era() == Stateless {
		return CodeInvalidParams
	}
	return CodeResourceNotFound
}

// MethodAllowed reports whether a client may send method in r: what r has, and what no revision has (an
// extension's, which goes on where there is a single target).
func (r Revision) MethodAllowed(method string) bool {
	info := Methods(method)
	return info.Routing == Unknown || info.In(r) && info.Routing != FromServer
}

// Negotiate is the revision to answer an initialize with that asked for asked: that one if it has sessions and
// is among serves (nil: all), else the newest with sessions of serves; "" if none has.
func Negotiate(asked Revision, serves []Revision) Revision {
	if serves == nil {
		serves = revisions
	}
	var newest Revision
	for _, r := range serves {
		switch {
		case !r.HasSessions():
		case r == asked:
			return r
		default:
			newest = max(newest, r)
		}
	}
	return newest
}
