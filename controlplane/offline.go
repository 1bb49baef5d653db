package controlplane

import (
	"bytes"

	"github.com/sluicegate/sluice/controlplane/merge"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// ExplainOffline is Explain for a tenant's objects that are at hand: it asks no control plane. A Platform object among
// them is the level above. The target is `name` or `backend/name`.
func ExplainOffline(tenantName string, objects []*adminv1.Object, target string) (*adminv1.ExplainResponse, error) {
	return merge.Explain(offline(tenantName, objects), target)
}

// Validate checks objects that were read from files as apply would, as far as that is possible without a control plane:
// grants, other sets and stored secrets are not known. Partial says that they are single documents, which may refer to what
// is stored already.
func Validate(objects []*adminv1.Object, partial bool) []*adminv1.Diagnostic {
	in := offline(tenant.Default, objects)
	diagnostics := resource.Validate(objects, resource.Context{Offline: true, Partial: partial, Platform: in.Platform.GetPlatform()})
	if resource.Failed(diagnostics) {
		return diagnostics // what is built from these objects would only repeat it
	}
	return append(diagnostics, merge.Check(in)...)
}

// Rehearse derives what a proxy would be given of a tenant's objects, to try it out: every local power is granted, and
// credentials may be inline. Nothing of it may leave the process. A Platform object among them is the level above. The error
// names the object that cannot be put on the wire.
func Rehearse(tenantName string, objects []*adminv1.Object) (*merge.Output, error) {
	in := offline(tenantName, objects)
	in.Grants = []string{"*", "metadata"}
	in.SessionKeys = &xdsv1.SessionKeys{Keys: []*xdsv1.SessionKey{{Id: []byte("test"), Key: bytes.Repeat([]byte{1}, 32)}}}
	return merge.Rehearse(in)
}

func offline(tenantName string, objects []*adminv1.Object) merge.Inputs {
	in := merge.Inputs{Tenant: tenantName, Objects: objects}
	for _, o := range objects {
		if o.GetPlatform() != nil {
			in.Platform = o
		}
	}
	return in
}
