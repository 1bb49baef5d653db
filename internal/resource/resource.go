// Package resource is what operators write: kinds and names of objects, the YAML in which they are
// written and shown, and what can be checked without a store.
//
// [Load] turns files into objects that know the line of each of their fields; the schema is the protos
// of sluice.admin.v1, with short spellings on top. [Validate] checks objects against each other, in the
// CLI as in the control plane. [Encode] and [Diff] show objects, never a credential.
package resource

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Names of the two kinds of which there is one.
const (
	PlatformName = "platform"
	TenantName   = "tenant"
)

// LastIndex is the place of a target that named none: after all that did.
const LastIndex = math.MaxUint32

// specs are the kinds: the members of Object's oneof, in the order of the proto.
var specs = (&adminv1.Object{}).ProtoReflect().Descriptor().Oneofs().ByName("spec").Fields()

// Kinds returns all kinds as [Kind] spells them, outermost level first.
func Kinds() []string {
	kinds := make([]string, specs.Len())
	for i := range kinds {
		kinds[i] = string(specs.Get(i).Name())
	}
	return kinds
}

// ParseKind returns the kind that s names, whatever its case, or an error that lists them.
func ParseKind(s string) (string, error) {
	kind := strings.ToLower(s)
	if specs.ByName(protoreflect.Name(kind)) == nil {
		hint := didYouMean(kind, Kinds())
		if hint == "" {
			hint = "kinds are " + strings.Join(Kinds(), ", ")
		}
		return "", fmt.Errorf("unknown kind %q; %s", s, hint)
	}
	return kind, nil
}

// Kind returns an object's kind, e.g. `target`, or "" if it has no spec.
func Kind(o *adminv1.Object) string {
	if fd := o.ProtoReflect().WhichOneof(specs.Get(0).ContainingOneof()); fd != nil {
		return string(fd.Name())
	}
	return ""
}

// Key returns kind and name, e.g. `target/tools/search`: unique in a tenant.
func Key(o *adminv1.Object) string { return Kind(o) + "/" + o.GetName() }

// Policies returns the policies that an object sets for its level; nil where it sets none.
func Policies(o *adminv1.Object) (policies, enforced *policyv1.Policies) {
	s, ok := spec(o).(interface {
		GetPolicies() *policyv1.Policies
		GetEnforced() *policyv1.Policies
	})
	if !ok {
		return nil, nil
	}
	return s.GetPolicies(), s.GetEnforced()
}

// spec returns the message in the oneof, or nil.
func spec(o *adminv1.Object) any {
	m := o.ProtoReflect()
	fd := m.WhichOneof(specs.Get(0).ContainingOneof())
	if fd == nil {
		return nil
	}
	return m.Get(fd).Message().Interface()
}

// Credentials yields every credential of an object with its path in the spec, in the order of the
// fields. They may be changed in place: so the control plane lifts inline values out.
func Credentials(o *adminv1.Object) iter.Seq2[string, *policyv1.Credential] {
	return func(yield func(string, *policyv1.Credential) bool) {
		if s, ok := spec(o).(protoreflect.ProtoMessage); ok {
			credentials(s.ProtoReflect(), "", yield)
		}
	}
}

func credentials(m protoreflect.Message, at string, yield func(string, *policyv1.Credential) bool) bool {
	if c, ok := m.Interface().(*policyv1.Credential); ok {
		return yield(at, c)
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Message() == nil || fd.IsMap() || !m.Has(fd) {
			continue
		}
		path := join(at, fd.JSONName())
		if !fd.IsList() {
			if !credentials(m.Get(fd).Message(), path, yield) {
				return false
			}
			continue
		}
		list := m.Get(fd).List()
		for j := range list.Len() {
			if !credentials(list.Get(j).Message(), index(path, j), yield) {
				return false
			}
		}
	}
	return true
}

// Targets returns a backend's targets in their order.
func Targets(objects []*adminv1.Object, backend string) []*adminv1.Object {
	var out []*adminv1.Object
	for _, o := range objects {
		if t := o.GetTarget(); t != nil && t.GetBackend() == backend {
			out = append(out, o)
		}
	}
	slices.SortStableFunc(out, func(a, b *adminv1.Object) int {
		return cmp.Or(cmp.Compare(a.GetTarget().GetIndex(), b.GetTarget().GetIndex()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return out
}

// TargetName returns the part of a target object's name that clients see.
func TargetName(o *adminv1.Object) string {
	return o.GetName()[strings.LastIndexByte(o.GetName(), '/')+1:]
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
