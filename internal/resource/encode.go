package resource

import adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"

func Encode(o *adminv1.Object) []byte { return nil }
