package resource

import adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"

func Diff(old, new []*adminv1.Object) []*adminv1.Change { return nil }
