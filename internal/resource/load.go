package resource

import adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"

// A File is one configuration file. Name is what diagnostics call it.
type File struct {
	Name string
	Data []byte
}

// A Set is what files hold. Single is true for documents with kind, name and spec, which are upserts; else
// the objects are the whole content of a set.
type Set struct {
	Objects []*adminv1.Object
	Single  bool
}

func Load(files []File, env func(string) (string, bool)) (Set, []*adminv1.Diagnostic) {
	return Set{}, nil
}
