package resource

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Diff returns what turns old into new, in the order of kinds and names, an object's fields in their own
// order. Where an object was read, and by which revision and set it is held, is no part of it. Values of
// credentials are compared but not shown. An object that was created with the content of a deleted one tells
// its old name; both changes are listed.
func Diff(old, new []*adminv1.Object) []*adminv1.Change {
	before, after := byKey(old), byKey(new)
	var changes []*adminv1.Change
	for key, o := range before {
		if after[key] == nil {
			changes = append(changes, &adminv1.Change{Op: adminv1.Change_OP_DELETE, Kind: Kind(o), Name: o.GetName()})
		}
	}
	for key, o := range after {
		was := before[key]
		if was == nil {
			changes = append(changes, &adminv1.Change{Op: adminv1.Change_OP_CREATE, Kind: Kind(o), Name: o.GetName()})
			continue
		}
		if fields := diffFields(showSpec(was), showSpec(o)); len(fields) > 0 {
			changes = append(changes, &adminv1.Change{Op: adminv1.Change_OP_UPDATE, Kind: Kind(o), Name: o.GetName(), Fields: fields})
		}
	}
	kinds := Kinds()
	slices.SortFunc(changes, func(a, b *adminv1.Change) int {
		return cmp.Or(
			cmp.Compare(slices.Index(kinds, a.GetKind()), slices.Index(kinds, b.GetKind())),
			cmp.Compare(a.GetName(), b.GetName()))
	})
	findRenames(changes, before, after)
	return changes
}

// Flips warns of what a change does to the names that clients see: with prefixMode conditional, a second
// target gives the names of the first a prefix, and taking it away removes them. Only sessions that begin
// after the change notice.
func Flips(old, new []*adminv1.Object) []*adminv1.Diagnostic {
	var out []*adminv1.Diagnostic
	before, was, is := byKey(old), targetCounts(old), targetCounts(new)
	for _, o := range new {
		b := o.GetBackend()
		if b == nil || before[Key(o)] == nil || was[o.GetName()] == 0 || is[o.GetName()] == 0 {
			continue // nobody knows names of it
		}
		had, has := prefixed(before[Key(o)].GetBackend(), was[o.GetName()]), prefixed(b, is[o.GetName()])
		if had == has {
			continue
		}
		message := fmt.Sprintf("the names of %s lose their prefixes: TARGET_NAME becomes NAME", plural(is[o.GetName()], "target"))
		if has {
			message = fmt.Sprintf("the names of %s get prefixes: NAME becomes TARGET_NAME", plural(was[o.GetName()], "target"))
		}
		out = append(out, Diagnose(o, severityWarning, "prefixMode", fmt.Sprintf("backend %q: %s", o.GetName(), message),
			"set prefixMode to always or never to keep names as they are"))
	}
	sortDiagnostics(out, nil)
	return out
}

func prefixed(b *adminv1.Backend, targets int) bool {
	switch b.GetPrefixMode() {
	case adminv1.Backend_PREFIX_MODE_ALWAYS:
		return true
	case adminv1.Backend_PREFIX_MODE_NEVER:
		return false
	}
	return targets > 1
}

// targetCounts is how many targets each backend has.
func targetCounts(objects []*adminv1.Object) map[string]int {
	counts := map[string]int{}
	for _, o := range objects {
		if t := o.GetTarget(); t != nil {
			counts[t.GetBackend()]++
		}
	}
	return counts
}

func byKey(objects []*adminv1.Object) map[string]*adminv1.Object {
	m := make(map[string]*adminv1.Object, len(objects))
	for _, o := range objects {
		m[Key(o)] = o
	}
	return m
}

// findRenames pairs created objects with deleted ones of the same content. What others are named after goes
// first (listener before route, backend before target), so that a reference to a renamed object is no
// difference.
func findRenames(changes []*adminv1.Change, before, after map[string]*adminv1.Object) {
	created, deleted := map[string][]*adminv1.Change{}, map[string][]*adminv1.Change{} // by kind, in order of names
	for _, c := range changes {
		switch c.GetOp() {
		case adminv1.Change_OP_CREATE:
			created[c.GetKind()] = append(created[c.GetKind()], c)
		case adminv1.Change_OP_DELETE:
			deleted[c.GetKind()] = append(deleted[c.GetKind()], c)
		}
	}
	renamed := map[string]string{} // key of an old name → new name
	for _, kind := range []string{"secret", "listener", "backend", "target", "route"} {
		if len(created[kind]) == 0 {
			continue
		}
		candidates := map[string][]candidate{} // by content
		for _, d := range deleted[kind] {
			was := follow(before[kind+"/"+d.GetName()], renamed)
			spec := showSpec(was)
			content := spec.revealed().flow()
			candidates[content] = append(candidates[content], candidate{was, spec})
		}
		if len(candidates) == 0 {
			continue
		}
		for _, c := range created[kind] {
			now := after[kind+"/"+c.GetName()]
			spec := showSpec(now)
			content := spec.revealed().flow()
			alike := candidates[content]
			at := slices.IndexFunc(alike, func(d candidate) bool { return d.becomes(now, spec) })
			if at < 0 {
				continue
			}
			c.RenamedFrom = alike[at].was.GetName()
			renamed[kind+"/"+c.RenamedFrom] = c.GetName()
			candidates[content] = slices.Delete(alike, at, at+1)
		}
	}
}

// candidate is a deleted object that may live on under another name.
type candidate struct {
	was  *adminv1.Object
	spec shown
}

func (d candidate) becomes(now *adminv1.Object, spec shown) bool {
	if now.GetTarget() != nil && TargetName(d.was) != TargetName(now) && d.was.GetTarget().GetBackend() != now.GetTarget().GetBackend() {
		return false // moved and renamed: nobody would call it the same
	}
	return len(diffFields(d.spec, spec)) == 0
}

// follow returns an object with its references led to the new names.
func follow(o *adminv1.Object, renamed map[string]string) *adminv1.Object {
	o = proto.CloneOf(o)
	to := func(kind string, name *string) {
		if now, ok := renamed[kind+"/"+*name]; ok {
			*name = now
		}
	}
	if r := o.GetRoute(); r != nil {
		to("listener", &r.Listener)
		for _, b := range r.GetBackends() {
			to("backend", &b.Backend)
		}
	}
	if t := o.GetTarget(); t != nil {
		to("backend", &t.Backend)
	}
	for _, c := range Credentials(o) {
		if name := c.GetSecret(); name != "" {
			to("secret", &name)
			c.Source = &policyv1.Credential_Secret{Secret: name}
		}
	}
	return o
}

// diffFields lists the scalars that differ. A map or list that one side lacks is one field.
func diffFields(old, new shown) []*adminv1.FieldChange {
	var out []*adminv1.FieldChange
	diffInto(&out, "", old, new)
	return out
}

func diffInto(out *[]*adminv1.FieldChange, path string, old, new shown) {
	switch {
	case old.fields != nil && new.fields != nil:
		for _, f := range old.fields {
			value, ok := lookup(new, f.name)
			if !ok {
				*out = append(*out, &adminv1.FieldChange{Path: join(path, f.name), Before: f.value.flow()})
				continue
			}
			diffInto(out, join(path, f.name), f.value, value)
		}
		for _, f := range new.fields {
			if _, ok := lookup(old, f.name); !ok {
				*out = append(*out, &adminv1.FieldChange{Path: join(path, f.name), After: f.value.flow()})
			}
		}
	case old.items != nil && new.items != nil:
		for i := range max(len(old.items), len(new.items)) {
			switch p := index(path, i); {
			case i >= len(new.items):
				*out = append(*out, &adminv1.FieldChange{Path: p, Before: old.items[i].flow()})
			case i >= len(old.items):
				*out = append(*out, &adminv1.FieldChange{Path: p, After: new.items[i].flow()})
			default:
				diffInto(out, p, old.items[i], new.items[i])
			}
		}
	case old.flow() != new.flow() || old.secret != new.secret:
		*out = append(*out, &adminv1.FieldChange{Path: path, Before: old.flow(), After: new.flow()})
	}
}

func lookup(s shown, name string) (shown, bool) {
	for _, f := range s.fields {
		if f.name == name {
			return f.value, true
		}
	}
	return shown{}, false
}

// revealed shows values of credentials: to compare with, never to be written.
func (s shown) revealed() shown {
	s.fields, s.items = slices.Clone(s.fields), slices.Clone(s.items)
	for i := range s.fields {
		s.fields[i].value = s.fields[i].value.revealed()
	}
	for i := range s.items {
		s.items[i] = s.items[i].revealed()
	}
	if s.secret != "" {
		s.text += s.secret
	}
	return s
}

// flow writes a value in one line.
func (s shown) flow() string {
	var parts []string
	switch {
	case s.fields != nil:
		for _, f := range s.fields {
			parts = append(parts, scalarText(f.name, false)+": "+f.value.flow())
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case s.items != nil:
		for _, item := range s.items {
			parts = append(parts, item.flow())
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	s.expands = false // this is to be read, not to be loaded
	return s.scalar()
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
