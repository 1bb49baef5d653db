// Package merge turns one tenant's objects into what its proxies are given: policies of all levels merged
// per target, and every resource as bytes with a version that its content decides.
//
// It is pure: it knows no store, no clock and no xDS server, and the same inputs give the same bytes. [Derive] works
// from scratch, [Output.Update] from what changed; both give the same, byte for byte. [Check] builds what proxies
// build and blames the operator's object; [Explain] tells where each policy of a target came from.
package merge

import (
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Inputs is everything that one tenant's resources are made from. It and all it refers to are immutable: a change is a
// new Inputs that shares what did not change. Objects that are the same pointer as before cost [Output.Update] nothing.
type Inputs struct {
	Tenant string
	// The operator's level, with its Platform spec. If nil: none.
	Platform *adminv1.Object
	// The tenant's, in any order; an order that stays the same makes updates fast. Platform and Group objects are ignored.
	Objects []*adminv1.Object
	Grants  []string
	// Plain values by resource name, `<tenant>/secret/<name>` and `<tenant>/sealed/<fingerprint>`. More than what is
	// referenced may be here; it stays here.
	Secrets map[string][]byte
	// If nil: the tenant has none yet.
	SessionKeys *xdsv1.SessionKeys
	// Key sets by where they are (see policy.JwksSource), as fetched. One that is missing is served with no keys.
	Jwks map[string][]byte
	// Keys the versions of secrets, which show in status output. Required where there is a secret to serve.
	VersionKey []byte
}

// A Resource is one served resource.
type Resource struct {
	// `<tenant>/<kind>/<name>`.
	Name string
	// 96 bits of SHA-256 in base64url; of a secret a keyed hash.
	Version string
	// A deterministic encoding of sluice.xds.v1.Config or Secret. Not to be changed.
	Body []byte
}

// A Delta is what changed, each list sorted by name.
type Delta struct {
	Config, Secret               []Resource
	RemovedConfig, RemovedSecret []string
}

// Empty tells whether nothing changed on the wire.
func (d Delta) Empty() bool {
	return len(d.Config)+len(d.Secret)+len(d.RemovedConfig)+len(d.RemovedSecret) == 0
}

// Derive makes a tenant's resources from scratch. The Commit is not among them: whoever publishes numbers revisions.
// The error names the object that cannot be put on the wire, e.g. for an inline value that was not sealed.
func Derive(in Inputs) (*Output, error) {
	o, _, err := (&Output{}).Update(in)
	return o, err
}
