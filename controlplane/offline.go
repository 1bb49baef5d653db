package controlplane

import (
	"github.com/sluicegate/sluice/controlplane/merge"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// ExplainOffline is Explain for objects that were read from files: it asks no control plane. A Platform object among
// them is the level above. The target is `name` or `backend/name`.
func ExplainOffline(objects []*adminv1.Object, target string) (*adminv1.ExplainResponse, error) {
	return merge.Explain(offline(objects), target)
}

// Validate checks objects that were read from files as apply would, as far as that is possible without a control plane:
// grants, other sets and stored secrets are not known. Partial says that they are single documents, which may refer to what
// is stored already.
func Validate(objects []*adminv1.Object, partial bool) []*adminv1.Diagnostic {
	in := offline(objects)
	diagnostics := resource.Validate(objects, resource.Context{Offline: true, Partial: partial, Platform: in.Platform.GetPlatform()})
	if resource.Failed(diagnostics) {
		return diagnostics // what is built from these objects would only repeat it
	}
	return append(diagnostics, merge.Check(in)...)
}

func offline(objects []*adminv1.Object) merge.Inputs {
	in := merge.Inputs{Tenant: "default", Objects: objects}
	for _, o := range objects {
		if o.GetPlatform() != nil {
			in.Platform = o
		}
	}
	return in
}
