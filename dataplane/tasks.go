package dataplane

import (
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// ofTask is the backend of the task that a request which stands alone is about, nil where its id does not say. A caller who
// is known by nothing but his address may come from another one, and would be sent elsewhere by that.
func (x *exchange) ofTask(codec *session.Codec, scope session.Scope) *snapshot.Backend {
	if codec == nil || len(x.route.Backends) < 2 || x.message == nil || !x.message.TaskID.IsString() {
		return nil
	}
	id := x.message.TaskID.String()
	for _, b := range x.route.Backends {
		scope.Backend = b.Resource
		if _, err := codec.OpenTask(scope, id); err == nil {
			return b
		}
	}
	return nil
}
