package resource

import adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"

// Context is what Validate must know beside the objects.
type Context struct {
	// Apply makes a policy kind that is not yet enforced an error; else it is a note.
	Apply bool
	// Partial says that the objects are not all of the tenant's: a reference to none of them may be good, and
	// what only the whole can tell is not checked.
	Partial bool
	// Platform is the level above the tenant. If nil: none is known.
	Platform *adminv1.Platform
}

func Validate(objects []*adminv1.Object, whole Context) []*adminv1.Diagnostic { return nil }
